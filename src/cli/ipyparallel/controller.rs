//! The options of `ipcontroller`.
use super::common::Common;
use super::{Refusal, Trait};

#[derive(Debug, Default, PartialEq)]
pub(crate) struct ControllerTraits {
    pub common: Common,
    /// For `Config::load_with`, in the order given.
    pub settings: Vec<(String, String)>,
    /// The ssh server of clients.
    pub ssh: Option<String>,
    /// The ssh server of engines.
    pub engine_ssh: Option<String>,
    /// Keep keys, ports and connection files after an orderly exit.
    pub reuse: bool,
    /// The number of missed heartbeats after which an engine is lost.
    misses: Option<f64>,
}

impl ControllerTraits {
    pub(crate) fn of(traits: &[Trait]) -> Result<ControllerTraits, Refusal> {
        let mut words = ControllerTraits::default();
        for option in traits {
            words.take(option)?;
        }
        Ok(words)
    }

    /// The missed heartbeats as a lease setting for a controller with this `heartbeat_interval_ms`.
    pub(crate) fn lease(&self, heartbeat_interval_ms: u64) -> Option<(String, String)> {
        let lease = (self.misses? * heartbeat_interval_ms as f64) as u64;
        Some(("controller.lease_ms".into(), lease.max(heartbeat_interval_ms + 1).to_string()))
    }

    fn set(&mut self, key: &str, value: impl ToString) {
        self.settings.push((format!("controller.{key}"), value.to_string()));
    }

    fn take(&mut self, option: &Trait) -> Result<(), Refusal> {
        let refused = |why: &str| Err(format!("{}: {why}", option.spelled()));
        match (option.class.as_str(), option.name.as_str()) {
            ("IPController" | "HubFactory" | "IPControllerApp", name) => match name {
                // Quoted as YAML text: an address of digits and dots must stay a string.
                "ip" => self.set("ip", format!("{:?}", option.value)),
                "location" => self.set("location", format!("{:?}", option.value)),
                "ports" => self.set("ports", format!("{:?}", option.value)),
                "ssh_server" => self.ssh = option.text(),
                "engine_ssh_server" => self.engine_ssh = option.text(),
                "enable_curve" => self.set("curve", option.truth()?),
                "reuse_files" | "restore_engines" => self.reuse |= option.truth()?,
                "registration_timeout" => self.set("registration_timeout_ms", option.seconds()?),
                "db_class" => self.note_database(option),
                "use_threads" => self.common.ignore(option, "pcluster's controller is always a single process"),
                "broadcast_scheduler_depth" => self.common.ignore(option, "pcluster needs no tree of schedulers for broadcasts"),
                "transport" | "engine_transport" | "client_transport" | "monitor_transport" if option.value == "tcp" => {}
                "transport" | "engine_transport" | "client_transport" | "monitor_transport" => {
                    return refused("pcluster's controller supports only tcp; omit it");
                }
                "engine_ip" | "client_ip" => {
                    return refused("pcluster's controller listens on one address for clients and engines: --ip=ADDRESS");
                }
                "monitor_ip" => self.common.ignore(option, "pcluster's controller has no internal sockets"),
                "client_ports" | "engine_ports" | "regport" | "mon_port" | "notifier_port" | "hb" | "mux" | "task" | "control"
                | "iopub" => {
                    return refused("set all 16 ports together: --ports=10101-10116");
                }
                "engine_json_file" | "client_json_file" => {
                    return refused("the connection files are named after the cluster: --cluster-id=ID");
                }
                "curve_secretkey" | "curve_publickey" => {
                    return refused("pcluster's controller generates its own private keys; omit it");
                }
                _ => self.other(option)?,
            },
            ("HeartMonitor", "period") => self.set("heartbeat_interval_ms", option.number()? as u64),
            ("HeartMonitor", "max_heartmonitor_misses") => self.misses = Some(option.number()?),
            ("TaskScheduler" | "Scheduler", "scheme_name") if option.value == "pure" => {
                return refused("`pure` is a ZeroMQ queue without dependencies; the closest is --scheme=lru");
            }
            ("TaskScheduler" | "Scheduler", "scheme_name") => self.set("task_scheme", &option.value),
            ("TaskScheduler" | "Scheduler", "hwm") => self.set("hwm", option.number()? as u64),
            ("DictDB" | "SQLiteDB" | "MongoDB" | "NoDB", _) => self.note_database(option),
            _ => self.other(option)?,
        }
        Ok(())
    }

    fn other(&mut self, option: &Trait) -> Result<(), Refusal> {
        if !self.common.take(option)? {
            let why = format!("pcluster's controller has no counterpart of {}.{}", option.class, option.name);
            self.common.ignore(option, &why);
        }
        Ok(())
    }

    fn note_database(&mut self, option: &Trait) {
        self.common.ignore(
            option,
            "every task is recorded in the cluster's own database until `pcluster purge`",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(traits: &[&str]) -> Result<ControllerTraits, Refusal> {
        let traits: Vec<Trait> = traits.iter().map(|t| Trait::parse(t).unwrap()).collect();
        ControllerTraits::of(&traits)
    }

    #[test]
    fn traits_with_a_counterpart_become_settings() {
        let words = words(&[
            "IPController.ip=0.0.0.0",
            "HubFactory.location=login1",
            "HeartMonitor.period=250",
            "HeartMonitor.max_heartmonitor_misses=10",
            "TaskScheduler.scheme_name=lru",
            "TaskScheduler.hwm=0",
            "IPController.ports=10101-10116",
            "IPController.enable_curve=False",
            "IPController.reuse_files=True",
            "IPController.ssh_server=me@login1",
            "Application.log_level=10",
        ])
        .unwrap();
        let settings: Vec<String> = words.settings.iter().map(|(k, v)| format!("{k}={v}")).collect();
        insta::assert_snapshot!(settings.join("\n"), @r#"
        controller.ip="0.0.0.0"
        controller.location="login1"
        controller.heartbeat_interval_ms=250
        controller.task_scheme=lru
        controller.hwm=0
        controller.ports="10101-10116"
        controller.curve=false
        "#);
        assert_eq!(words.lease(250), Some(("controller.lease_ms".into(), "2500".into())));
        assert_eq!((words.ssh.as_deref(), words.reuse), (Some("me@login1"), true));
        assert_eq!(words.common.log_level.as_deref(), Some("debug"));
        assert_eq!(words.common.notes, Vec::<String>::new());
    }

    #[test]
    fn traits_without_a_counterpart_are_explained_or_rejected() {
        let notes = words(&["IPController.db_class=DictDB", "Hub.db=x", "Session.username=me"])
            .unwrap()
            .common
            .notes;
        insta::assert_snapshot!(notes.join("\n"), @r"
        --IPController.db_class=DictDB is ignored: every task is recorded in the cluster's own database until `pcluster purge`
        --Hub.db=x is ignored: pcluster's controller has no counterpart of Hub.db
        --Session.username=me is ignored: pcluster sets `username` of messages itself
        ");
        let refusals: Vec<String> = [
            "IPController.transport=ipc",
            "IPController.client_ip=1.2.3.4",
            "IPController.regport=5",
            "TaskScheduler.scheme_name=pure",
            "TaskScheduler.hwm=few",
        ]
        .iter()
        .map(|t| words(&[t]).unwrap_err())
        .collect();
        insta::assert_snapshot!(refusals.join("\n"), @r#"
        --IPController.transport=ipc: pcluster's controller supports only tcp; omit it
        --IPController.client_ip=1.2.3.4: pcluster's controller listens on one address for clients and engines: --ip=ADDRESS
        --IPController.regport=5: set all 16 ports together: --ports=10101-10116
        --TaskScheduler.scheme_name=pure: `pure` is a ZeroMQ queue without dependencies; the closest is --scheme=lru
        --TaskScheduler.hwm=few: "few" is not a number
        "#);
    }
}
