//! The addresses of a connection file to try from this host, best first. Pure.
use super::ClientError;
use crate::connection::ConnectionFile;
use std::net::IpAddr;

/// `here` is the name of this host. Addresses have no port.
pub fn candidates(file: &ConnectionFile, here: &str) -> Result<Vec<String>, ClientError> {
    let interface = file.interface.strip_prefix("tcp://").unwrap_or(&file.interface);
    let interface = interface.trim_matches(['[', ']']);
    let published = file.pcluster.iter().flat_map(|keys| keys.addresses.iter().cloned());
    let elsewhere = published
        .chain([file.location.clone()])
        .filter(|a| !a.is_empty() && !is_loopback(a) && !is_any(a));
    let same_host = is_here(file, here);
    let mut found: Vec<String> = Vec::new();
    if is_any(interface) {
        if same_host {
            found.push(if interface == "::" { "::1" } else { "127.0.0.1" }.into());
        }
        found.extend(elsewhere);
    } else if is_loopback(interface) {
        if same_host {
            found.push(interface.into());
        } else {
            // A controller on loopback publishes no other address, but one behind a tunnel may.
            found.extend(
                file.pcluster
                    .iter()
                    .flat_map(|keys| keys.addresses.iter().cloned())
                    .filter(|a| !is_loopback(a) && !is_any(a)),
            );
        }
    } else {
        found.push(interface.into());
        found.extend(elsewhere);
    }
    let mut unique = Vec::new();
    for address in found {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    if unique.is_empty() {
        return Err(ClientError::OnlyThere {
            location: if is_loopback(&file.location) || file.location.is_empty() {
                host_of(file)
            } else {
                file.location.clone()
            },
            interface: interface.into(),
            here: here.into(),
        });
    }
    Ok(unique)
}

fn host_of(file: &ConnectionFile) -> String {
    file.pcluster
        .as_ref()
        .map(|keys| keys.process.host.clone())
        .unwrap_or_else(|| "another host".into())
}

/// Whether the controller is on this host. Without a host name in the file, a loopback location means this host.
fn is_here(file: &ConnectionFile, here: &str) -> bool {
    let same = |name: &str| !name.is_empty() && short(name).eq_ignore_ascii_case(short(here));
    match &file.pcluster {
        Some(keys) if !keys.process.host.is_empty() => same(&keys.process.host),
        _ => is_loopback(&file.location) || same(&file.location),
    }
}

/// The first label of a host name; an address as it is.
fn short(host: &str) -> &str {
    match host.parse::<IpAddr>() {
        Ok(_) => host,
        Err(_) => host.split('.').next().unwrap_or(host),
    }
}

fn is_loopback(address: &str) -> bool {
    address.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn is_any(address: &str) -> bool {
    address == "*" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(interface: &str, location: &str, host: Option<&str>, addresses: &[&str]) -> ConnectionFile {
        let mut json = serde_json::json!({
            "ssh": "", "interface": interface, "registration": 1, "control": 2, "mux": 3, "task": 4, "iopub": 5, "broadcast": 6,
            "key": "k", "curve_serverkey": null, "location": location, "pack": "json", "unpack": "json", "signature_scheme": "hmac-sha256",
        });
        if let Some(host) = host {
            json["pcluster"] = serde_json::json!({
                "version": "0.1.0", "protocol": 1, "cluster_id": "", "addresses": addresses, "pid": 7, "host": host, "started": 1.0,
            });
        }
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn each_location_has_its_addresses() {
        for (interface, location, host, addresses, here, expected) in [
            (
                "tcp://127.0.0.1",
                "127.0.0.1",
                Some("n1"),
                &["127.0.0.1"][..],
                "n1",
                &["127.0.0.1"][..],
            ),
            ("tcp://127.0.0.1", "127.0.0.1", Some("n1.site"), &[], "n1", &["127.0.0.1"]),
            ("tcp://127.0.0.1", "n1", None, &[], "n1", &["127.0.0.1"]),
            (
                "tcp://0.0.0.0",
                "10.0.0.1",
                Some("n1"),
                &["10.0.0.1", "192.168.0.1"],
                "n1",
                &["127.0.0.1", "10.0.0.1", "192.168.0.1"],
            ),
            (
                "tcp://0.0.0.0",
                "10.0.0.1",
                Some("n1"),
                &["10.0.0.1", "192.168.0.1"],
                "n2",
                &["10.0.0.1", "192.168.0.1"],
            ),
            ("tcp://*", "10.0.0.1", None, &[], "n2", &["10.0.0.1"]),
            ("tcp://[::]", "fd00::1", Some("n1"), &["fd00::1"], "n1", &["::1", "fd00::1"]),
            (
                "tcp://10.0.0.1",
                "10.0.0.1",
                Some("n1"),
                &["10.0.0.1", "10.0.0.2"],
                "n2",
                &["10.0.0.1", "10.0.0.2"],
            ),
            ("tcp://127.0.0.1", "n1", Some("n1"), &["10.0.0.1"], "n2", &["10.0.0.1"]),
        ] {
            let found = candidates(&file(interface, location, host, addresses), here).unwrap();
            assert_eq!(found, expected, "{interface} {location} from {here}");
        }
    }

    #[test]
    fn a_loopback_address_of_another_host_is_rejected_with_its_name() {
        let error = candidates(&file("tcp://127.0.0.1", "127.0.0.1", Some("n1"), &["127.0.0.1"]), "n2").unwrap_err();
        assert!(
            matches!(&error, ClientError::OnlyThere { location, here, .. } if location == "n1" && here == "n2"),
            "{error}"
        );
        assert!(error.hints()[0].contains("on n1"));
    }
}
