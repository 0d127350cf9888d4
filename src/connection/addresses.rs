//! The addresses of this host, for the connection files of a controller that listens on more than
//! the loopback interface.
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The addresses at which a controller listening on `ip` can be reached, best first. If it listens
/// on the loopback or on one address, only that one; if it listens on all (`0.0.0.0`, `*`, `::`),
/// those of every network that is up, the loopback last. A host name is returned unchanged.
pub(crate) fn reachable(ip: &str) -> Vec<String> {
    let listening: IpAddr = match ip {
        "*" | "" => Ipv4Addr::UNSPECIFIED.into(),
        "localhost" => Ipv4Addr::LOCALHOST.into(),
        _ => match ip.trim_matches(['[', ']']).parse() {
            Ok(address) => address,
            Err(_) => return vec![ip.to_string()],
        },
    };
    if !listening.is_unspecified() {
        return vec![listening.to_string()];
    }
    let mut found: Vec<(u8, IpAddr)> = interfaces()
        .iter()
        .filter_map(|i| Some((rank(i, listening.is_ipv6())?, i.address)))
        .collect();
    found.push((u8::MAX, Ipv4Addr::LOCALHOST.into()));
    // Within a rank, keep the kernel's order.
    found.sort_by_key(|(rank, _)| *rank);
    let mut addresses: Vec<String> = Vec::new();
    for (_, address) in found {
        let text = address.to_string();
        if !addresses.contains(&text) {
            addresses.push(text);
        }
    }
    addresses
}

/// Resolves the name of a network interface (`eth0`) to its first address, IPv4 before IPv6;
/// returns anything else unchanged.
pub(crate) fn of_interface(ip: &str) -> String {
    let mut of_it: Vec<IpAddr> = interfaces()
        .into_iter()
        .filter(|i| i.name == ip && !matches!(i.address, IpAddr::V6(v6) if is_link_local(v6)))
        .map(|i| i.address)
        .collect();
    of_it.sort_by_key(IpAddr::is_ipv6);
    of_it.first().map_or_else(|| ip.to_string(), IpAddr::to_string)
}

/// Whether only processes on this host can reach it.
pub(crate) fn is_loopback(address: &str) -> bool {
    address == "localhost" || address.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|a| a.is_loopback())
}

struct Interface {
    name: String,
    address: IpAddr,
    up: bool,
}

fn interfaces() -> Vec<Interface> {
    let Ok(all) = getifaddrs() else { return Vec::new() };
    let addressed = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let address: IpAddr = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => v4.ip().into(),
            (_, Some(v6)) => v6.ip().into(),
            _ => return None,
        };
        let up = interface.flags.contains(InterfaceFlags::IFF_UP);
        Some(Interface {
            name: interface.interface_name,
            address,
            up,
        })
    };
    all.filter_map(addressed).collect()
}

/// Ranks an interface by how well others can reach it, lowest is best; none if they cannot.
fn rank(interface: &Interface, ipv6: bool) -> Option<u8> {
    let inside_this_host = ["docker", "br-", "veth", "virbr", "cni", "podman", "lxc"];
    if !interface.up || interface.address.is_loopback() || interface.address.is_multicast() {
        return None;
    }
    let family = match interface.address {
        IpAddr::V4(v4) if v4.is_link_local() => 2,
        IpAddr::V4(_) => 0,
        IpAddr::V6(v6) if ipv6 && !is_link_local(v6) => 1,
        IpAddr::V6(_) => return None,
    };
    let bridge = inside_this_host.iter().any(|prefix| interface.name.starts_with(prefix));
    Some(family + if bridge { 10 } else { 0 })
}

/// `fe80::/10` is meaningless without an interface.
fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_on_one_address_is_reachable_only_at_that_address() {
        assert_eq!(reachable("127.0.0.1"), ["127.0.0.1"]);
        assert_eq!(reachable("localhost"), ["127.0.0.1"]);
        assert_eq!(reachable("::1"), ["::1"]);
        assert_eq!(reachable("10.1.2.3"), ["10.1.2.3"]);
        assert_eq!(reachable("node7.cluster"), ["node7.cluster"]);
    }

    #[test]
    fn an_interface_resolves_to_its_address_and_everything_else_to_itself() {
        assert_eq!(of_interface("lo"), "127.0.0.1");
        for other in ["10.1.2.3", "0.0.0.0", "*", "node7", "eth77"] {
            assert_eq!(of_interface(other), other);
        }
        assert!(is_loopback("127.0.0.1") && is_loopback("[::1]") && is_loopback("localhost"));
        assert!(!is_loopback("0.0.0.0") && !is_loopback("node7"));
    }

    #[test]
    fn a_controller_on_all_addresses_lists_the_loopback_last() {
        for all in ["0.0.0.0", "*", "::"] {
            let addresses = reachable(all);
            assert_eq!(addresses.last().map(String::as_str), Some("127.0.0.1"), "{addresses:?}");
            assert_eq!(addresses.iter().filter(|a| a.starts_with("127.")).count(), 1, "{addresses:?}");
        }
    }

    #[test]
    fn networks_rank_before_bridges_and_unreachable_interfaces_are_omitted() {
        let interface = |name: &str, address: &str, up| Interface {
            name: name.into(),
            address: address.parse().unwrap(),
            up,
        };
        assert!(rank(&interface("eth0", "10.0.0.1", true), false) < rank(&interface("docker0", "172.17.0.1", true), false));
        assert!(rank(&interface("eth0", "10.0.0.1", true), false) < rank(&interface("eth1", "169.254.3.4", true), false));
        assert!(rank(&interface("ib0", "10.0.0.1", true), true) < rank(&interface("ib0", "2001:db8::1", true), true));
        assert_eq!(rank(&interface("eth0", "10.0.0.1", false), false), None);
        assert_eq!(rank(&interface("eth0", "2001:db8::1", true), false), None);
        assert_eq!(rank(&interface("eth0", "fe80::1", true), true), None);
        assert_eq!(rank(&interface("lo", "127.0.0.1", true), false), None);
    }
}
