//! Reports about the controller as a whole: its version, its engines and load, and why work waits.
use super::Core;
use super::outbox::RequestContext;
use crate::model::{PROTOCOL_VERSION, VERSION};
use crate::wire::content::client::{self, ok};

impl Core {
    pub(super) fn hello(&mut self, context: &RequestContext, hello: &client::Hello) {
        let mut reply = serde_json::to_value(client::HelloReply {
            status: ok(),
            protocol: PROTOCOL_VERSION,
            version: VERSION.into(),
            cluster_id: self.facts.cluster_id.clone(),
            pid: self.facts.pid,
            host: self.facts.host.clone(),
            started: self.facts.started,
            packs: true,
            max_message_bytes: self.max_message_bytes(),
        })
        .unwrap_or_default();
        if hello.protocol != PROTOCOL_VERSION {
            reply["status"] = "error".into();
            reply["ename"] = "VersionMismatch".into();
            reply["evalue"] = format!(
                "this is pcluster {} (protocol {}), the running controller is pcluster {VERSION} (protocol {PROTOCOL_VERSION})",
                hello.version, hello.protocol
            )
            .into();
        }
        self.out.answer(context, &reply);
    }

    /// Describes maps with targets whose tasks wait for resources of their engines.
    fn bound_maps_without_resources(&self) -> Vec<String> {
        let waiting = self.bound_maps.iter();
        let maps = waiting.filter_map(|id| Some((id, self.maps.get(*id)?)));
        maps.filter(|(_, map)| map.has_ready())
            .filter_map(|(id, map)| {
                let request = map.request()?;
                Some(format!(
                    "map {id} waits: its engines are busy, or their nodes have less than {request} free"
                ))
            })
            .collect()
    }

    /// Describes requests of ipyparallel's clients that wait because no engine has a working Python.
    fn requests_without_python(&self) -> Option<String> {
        let waiting = self.requests.queued();
        let has_unavailable = self.engines.iter().any(|(_, e)| e.is_connected() && e.is_unavailable());
        let waits = waiting > 0 && has_unavailable && self.engines.by_load().next().is_none();
        waits
            .then(|| format!("requests of ipyparallel's clients wait ({waiting}): no engine has a working Python (see `pcluster engines`)"))
    }

    pub(super) fn status(&mut self, context: &RequestContext) {
        let engines = self.engines.iter().map(|(_, e)| self.engines.status(e)).collect();
        let begun: usize = self.engines.iter().filter(|(_, e)| e.load() > 0).count();
        let in_flight: usize = self.engines.iter().map(|(_, e)| e.load() as usize).sum();
        let ready: usize = self.maps.iter().map(|(_, m)| m.ready()).sum::<usize>() + self.requests.queued();
        let reply = client::StatusReply {
            status: ok(),
            version: VERSION.into(),
            pid: self.facts.pid,
            host: self.facts.host.clone(),
            cluster_id: self.facts.cluster_id.clone(),
            started: self.facts.started,
            engines,
            open_maps: self.maps.iter().count() as u64,
            queued: (ready + in_flight - begun) as u64,
            running: begun as u64,
            finished: self.finished_tasks,
            disconnected_peers: self.disconnected_peers,
            notes: [self.why_maps_wait(), self.bound_maps_without_resources()]
                .into_iter()
                .flatten()
                .chain(self.requests_without_python())
                .collect(),
        };
        self.out.answer(context, &reply);
    }
}
