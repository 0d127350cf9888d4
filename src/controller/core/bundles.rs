//! The code of open maps ([`crate::model::bundle`]): read from the request or the records into the map's definition, shared by maps with
//! the same code, and sent to each engine once, before the first definition that refers to it.
use super::Core;
use super::outbox::RequestContext;
use crate::model::bundle::Bundle;
use crate::model::definition::{BundleRef, MapDefinition};
use crate::model::{EngineUuid, MapId};
use crate::wire::Message;
use crate::wire::content::client;
use crate::wire::content::engine;
use crate::wire::content::error::ErrorContent;
use crate::wire::content::error::Refusal;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

#[derive(Debug, Default)]
pub(super) struct Bundles {
    open: HashMap<String, Weak<Bundle>>,
}

impl Bundles {
    fn get(&self, hash: &str) -> Option<Arc<Bundle>> {
        self.open.get(hash)?.upgrade()
    }

    /// Returns the existing bundle with the same hash, if any.
    fn share(&mut self, bundle: Arc<Bundle>) -> Arc<Bundle> {
        if let Some(existing) = self.get(&bundle.hash) {
            return existing;
        }
        if self.open.len() >= 64 {
            self.open.retain(|_, weak| weak.strong_count() > 0);
        }
        self.open.insert(bundle.hash.clone(), Arc::downgrade(&bundle));
        bundle
    }
}

impl Core {
    /// Adds the code to the request's definition, from the message or the cache; otherwise returns the hash of the missing bundle.
    pub(super) fn take_bundle(&mut self, message: &Message, request: &mut client::MapRequest) -> Result<Option<String>, ErrorContent> {
        let received = request.with_bundle.then(|| message.buffers.last().cloned()).flatten();
        let definition = request.definition.clone().with_bundle();
        request.definition = self.with_shared_bundle(definition);
        self.add_content(&mut request.definition, received)
    }

    /// Adds the code to a definition that refers to it.
    pub(super) fn add_content(&mut self, definition: &mut MapDefinition, received: Option<Bytes>) -> Result<Option<String>, ErrorContent> {
        let Some(named) = definition.bundle_mut().filter(|named| named.content.is_none()) else {
            return Ok(None);
        };
        if let Some(cached) = self.bundles.get(&named.hash) {
            named.content = Some(cached);
            return Ok(None);
        }
        let Some(received) = received else {
            return Ok(Some(named.hash.clone()));
        };
        let bundle = Bundle::from(received);
        let malformed = |what: String| ErrorContent::new("ValueError", what);
        bundle.files().map_err(malformed)?;
        if bundle.hash != named.hash {
            return Err(malformed(format!(
                "the received bundle has hash {}, not {}",
                bundle.hash, named.hash
            )));
        }
        named.content = Some(self.bundles.share(Arc::new(bundle)));
        Ok(None)
    }

    /// Shares the code of a recorded definition.
    pub(super) fn with_shared_bundle(&mut self, mut definition: MapDefinition) -> MapDefinition {
        if let Some(named) = definition.bundle_mut() {
            named.content = named.content.take().map(|bundle| self.bundles.share(bundle));
        }
        definition
    }

    /// Goes on with a `map_request`: `map` is the one that it created before, if any; else `bundle` is its missing code.
    pub(super) fn map_request_found(
        &mut self,
        context: &RequestContext,
        message: &Message,
        mut request: client::MapRequest,
        map: Option<MapId>,
        bundle: Option<Bytes>,
    ) -> Result<(), ErrorContent> {
        if let Some(id) = self.keys.get(&request.key).copied().or(map) {
            return self.map_known(context, message, request, id);
        }
        let missing = match self.take_bundle(message, &mut request)? {
            None => None,
            Some(_) => self.add_content(&mut request.definition, bundle)?,
        };
        match missing {
            None => self.map_new(context, message, request),
            Some(hash) => Err(ErrorContent::new(Refusal::UnknownBundle.as_str(), format!("unknown bundle {hash}"))),
        }
    }

    /// Sends the code of a map to an engine that does not have it.
    pub(super) fn send_bundle(&mut self, engine: &EngineUuid, named: &BundleRef) {
        let Some(bundle) = named.content.clone() else { return };
        if self.engines.change(engine, |e| e.use_bundle(&named.hash)) != Some(false) {
            return;
        }
        let of_map = |id: &MapId| Some(self.maps.get(id)?.definition.bundle()?.hash.as_str());
        let forget = self
            .engines
            .change(engine, |e| e.take_superfluous_bundles(of_map))
            .unwrap_or_default();
        let content = engine::BundleContent {
            hash: named.hash.clone(),
            forget,
        };
        self.out
            .send_to_engine_with(engine, engine::BUNDLE, &content, vec![bundle.content.clone()]);
    }
}
