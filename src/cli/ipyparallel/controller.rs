//! What `ipcontroller` is told.
use super::common::Common;
use super::{Refusal, Trait};

#[derive(Debug, Default, PartialEq)]
pub struct ControllerWords {
    pub common: Common,
    /// In the order given, for `Config::load_with`.
    pub settings: Vec<(String, String)>,
    /// The ssh server through which clients reach the controller.
    pub ssh: Option<String>,
    /// The one through which engines do.
    pub engine_ssh: Option<String>,
    /// Keys, ports and connection files outlive an orderly end.
    pub reuse: bool,
    /// So many missed heartbeats make an engine lost.
    misses: Option<f64>,
}

impl ControllerWords {
    pub fn of(traits: &[Trait]) -> Result<ControllerWords, Refusal> {
        let mut words = ControllerWords::default();
        for told in traits {
            words.take(told)?;
        }
        Ok(words)
    }

    /// The heartbeats that may be missed, as a lease: settings for a controller whose period is `heartbeat_interval_ms`.
    pub fn lease(&self, heartbeat_interval_ms: u64) -> Option<(String, String)> {
        let lease = (self.misses? * heartbeat_interval_ms as f64) as u64;
        Some(("controller.lease_ms".into(), lease.max(heartbeat_interval_ms + 1).to_string()))
    }

    fn set(&mut self, key: &str, value: impl ToString) {
        self.settings.push((format!("controller.{key}"), value.to_string()));
    }

    fn take(&mut self, told: &Trait) -> Result<(), Refusal> {
        let refused = |why: &str| Err(format!("{}: {why}", told.spelled()));
        match (told.class.as_str(), told.name.as_str()) {
            ("IPController" | "HubFactory" | "IPControllerApp", name) => match name {
                // As YAML text: an address of digits and points must stay one.
                "ip" => self.set("ip", format!("{:?}", told.value)),
                "location" => self.set("location", format!("{:?}", told.value)),
                "ports" => self.set("ports", format!("{:?}", told.value)),
                "ssh_server" => self.ssh = told.text(),
                "engine_ssh_server" => self.engine_ssh = told.text(),
                "enable_curve" => self.set("curve", told.truth()?),
                "reuse_files" | "restore_engines" => self.reuse |= told.truth()?,
                "registration_timeout" => self.set("registration_timeout_ms", told.seconds()?),
                "db_class" => self.note_database(told),
                "use_threads" => self.common.pass_over(told, "pcluster's controller is one process in any case"),
                "broadcast_scheduler_depth" => self.common.pass_over(told, "broadcasts need no tree of schedulers here"),
                "transport" | "engine_transport" | "client_transport" | "monitor_transport" if told.value == "tcp" => {}
                "transport" | "engine_transport" | "client_transport" | "monitor_transport" => {
                    return refused("pcluster's controller speaks tcp only; leave it out");
                }
                "engine_ip" | "client_ip" => {
                    return refused("pcluster's controller listens on one address for clients and engines: --ip=ADDRESS");
                }
                "monitor_ip" => self.common.pass_over(told, "there are no processes of its own to be heard"),
                "client_ports" | "engine_ports" | "regport" | "mon_port" | "notifier_port" | "hb" | "mux" | "task" | "control"
                | "iopub" => {
                    return refused("name all ports together, 16 of them: --ports=10101-10116");
                }
                "engine_json_file" | "client_json_file" => {
                    return refused("the connection files are named after the cluster: --cluster-id=ID");
                }
                "curve_secretkey" | "curve_publickey" => {
                    return refused("pcluster's controller makes its keys itself, and keeps them where only you can read; leave it out");
                }
                _ => self.other(told)?,
            },
            ("HeartMonitor", "period") => self.set("heartbeat_interval_ms", told.number()? as u64),
            ("HeartMonitor", "max_heartmonitor_misses") => self.misses = Some(told.number()?),
            ("TaskScheduler" | "Scheduler", "scheme_name") if told.value == "pure" => {
                return refused("`pure` is a queue of ZeroMQ's that knows no dependencies; the nearest is --scheme=lru");
            }
            ("TaskScheduler" | "Scheduler", "scheme_name") => self.set("task_scheme", &told.value),
            ("TaskScheduler" | "Scheduler", "hwm") => self.set("hwm", told.number()? as u64),
            ("DictDB" | "SQLiteDB" | "MongoDB" | "NoDB", _) => self.note_database(told),
            _ => self.other(told)?,
        }
        Ok(())
    }

    fn other(&mut self, told: &Trait) -> Result<(), Refusal> {
        if !self.common.take(told)? {
            let why = format!("pcluster's controller has nothing that answers to {}.{}", told.class, told.name);
            self.common.pass_over(told, &why);
        }
        Ok(())
    }

    fn note_database(&mut self, told: &Trait) {
        self.common.pass_over(
            told,
            "every task is recorded in the cluster's own database, for as long as `pcluster purge` does not forget it",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(traits: &[&str]) -> Result<ControllerWords, Refusal> {
        let traits: Vec<Trait> = traits.iter().map(|t| Trait::parse(t).unwrap()).collect();
        ControllerWords::of(&traits)
    }

    #[test]
    fn what_has_a_counterpart_becomes_a_setting() {
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
    fn what_has_none_is_explained_or_refused() {
        let notes = words(&["IPController.db_class=DictDB", "Hub.db=x", "Session.username=me"])
            .unwrap()
            .common
            .notes;
        insta::assert_snapshot!(notes.join("\n"), @r"
        --IPController.db_class=DictDB has no effect: every task is recorded in the cluster's own database, for as long as `pcluster purge` does not forget it
        --Hub.db=x has no effect: pcluster's controller has nothing that answers to Hub.db
        --Session.username=me has no effect: `username` of messages is pcluster's own matter
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
        --IPController.transport=ipc: pcluster's controller speaks tcp only; leave it out
        --IPController.client_ip=1.2.3.4: pcluster's controller listens on one address for clients and engines: --ip=ADDRESS
        --IPController.regport=5: name all ports together, 16 of them: --ports=10101-10116
        --TaskScheduler.scheme_name=pure: `pure` is a queue of ZeroMQ's that knows no dependencies; the nearest is --scheme=lru
        --TaskScheduler.hwm=few: "few" is not a number
        "#);
    }
}
