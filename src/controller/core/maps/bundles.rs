//! The code of open maps ([`crate::model::bundle`]): read from the request or the records into the map's definition, and shared by
//! maps with the same code.
use crate::model::bundle::Bundle;
use crate::model::definition::MapDefinition;
use crate::wire::Message;
use crate::wire::content::client::MapRequest;
use crate::wire::content::error::ErrorContent;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

#[derive(Debug, Default)]
pub(crate) struct Bundles {
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

    /// Adds the code to the request's definition, from the message or the cache; otherwise returns the hash of the missing bundle.
    pub(crate) fn take(&mut self, message: &Message, request: &mut MapRequest) -> Result<Option<String>, ErrorContent> {
        let received = request.with_bundle.then(|| message.buffers.last().cloned()).flatten();
        let definition = request.definition.clone().with_bundle();
        request.definition = self.share_in(definition);
        self.add_content(&mut request.definition, received)
    }

    /// Adds the code to a definition that refers to it.
    pub(crate) fn add_content(&mut self, definition: &mut MapDefinition, received: Option<Bytes>) -> Result<Option<String>, ErrorContent> {
        let Some(named) = definition.bundle_mut().filter(|named| named.content.is_none()) else {
            return Ok(None);
        };
        if let Some(cached) = self.get(&named.hash) {
            named.content = Some(cached);
            return Ok(None);
        }
        let Some(received) = received else {
            return Ok(Some(named.hash.clone()));
        };
        let bundle = Bundle::from(received);
        let malformed = |what: String| ErrorContent::new("ValueError", what);
        bundle.files().map_err(|error| malformed(error.to_string()))?;
        if bundle.hash != named.hash {
            return Err(malformed(format!(
                "the received bundle has hash {}, not {}",
                bundle.hash, named.hash
            )));
        }
        named.content = Some(self.share(Arc::new(bundle)));
        Ok(None)
    }

    /// Shares the code of a recorded definition.
    pub(crate) fn share_in(&mut self, mut definition: MapDefinition) -> MapDefinition {
        if let Some(named) = definition.bundle_mut() {
            named.content = named.content.take().map(|bundle| self.share(bundle));
        }
        definition
    }
}
