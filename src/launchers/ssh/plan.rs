//! Distributes engines to hosts.
use crate::launchers::LaunchError;
use crate::profile::config::resources::SshHost;

/// The numbers of each host's engines, assigned round-robin up to each host's limit. Hosts without engines are omitted.
pub(super) fn plan(hosts: &[SshHost], n: u32, first: u32) -> Result<Vec<(&SshHost, Vec<u32>)>, LaunchError> {
    if hosts.is_empty() {
        return Err(LaunchError::NoHosts);
    }
    let mut plan: Vec<(&SshHost, Vec<u32>)> = hosts.iter().map(|host| (host, Vec::new())).collect();
    let (mut given, mut at) = (0, 0);
    while given < n {
        let takes_more = |(host, numbers): &(&SshHost, Vec<u32>)| host.engines.is_none_or(|most| (numbers.len() as u32) < most);
        if !plan.iter().any(takes_more) {
            return Err(LaunchError::NotEnoughSlots { wanted: n, slots: given });
        }
        let place = at % plan.len();
        if takes_more(&plan[place]) {
            plan[place].1.push(first + given);
            given += 1;
        }
        at += 1;
    }
    plan.retain(|(_, numbers)| !numbers.is_empty());
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(hosts: &[&str], n: u32) -> Result<Vec<(String, Vec<u32>)>, String> {
        let hosts: Vec<SshHost> = hosts.iter().map(|text| SshHost::parse(text).unwrap()).collect();
        let plan = plan(&hosts, n, 10).map_err(|e| e.to_string())?;
        Ok(plan.into_iter().map(|(host, numbers)| (host.host.clone(), numbers)).collect())
    }

    #[test]
    fn engines_are_assigned_round_robin_until_a_host_is_full() {
        let expected = vec![("a".into(), vec![10]), ("b".into(), vec![11, 12, 13])];
        assert_eq!(planned(&["a:1", "b"], 4), Ok(expected));
        assert_eq!(planned(&["a:4", "b:8"], 1), Ok(vec![("a".into(), vec![10])]));
        assert_eq!(
            planned(&["a:1", "b:2"], 4),
            Err("4 engines were requested, but the hosts have 3 slots".into())
        );
        assert!(planned(&[], 1).unwrap_err().contains("has no hosts"));
    }
}
