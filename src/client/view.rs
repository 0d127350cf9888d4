//! Views of engines: a balanced view sends tasks to any free engine, a direct view to given engines.
use super::{AsyncResult, Client, ClientError};
use crate::client::submit::Input;
use crate::model::EngineId;
use crate::model::definition::{MapDefinition, MapOptions, Work};
use crate::model::targets::Targets;
use bytes::Bytes;

/// A client and the options of its maps.
#[derive(Clone)]
pub struct View {
    client: Client,
    pub options: MapOptions,
}

impl Client {
    /// Tasks run on any free engine.
    pub fn balanced(&self) -> View {
        View {
            client: self.clone(),
            options: MapOptions::default(),
        }
    }
    /// One task runs on each of these engines.
    pub fn direct(&self, targets: Targets) -> View {
        let options = MapOptions {
            targets: Some(targets),
            ..MapOptions::default()
        };
        View {
            client: self.clone(),
            options,
        }
    }
}

impl View {
    /// Submits a map. On a direct view, input `i` goes to the i-th engine.
    pub async fn map<I>(&self, work: Work, inputs: I) -> Result<AsyncResult, ClientError>
    where
        I: IntoIterator<Item = Input>,
        I::IntoIter: Send + 'static,
    {
        self.for_each_engine(work, |_| inputs).await
    }

    /// The same with inputs that depend on the engines (of a direct view, in order).
    pub async fn for_each_engine<I>(&self, work: Work, inputs: impl FnOnce(&[EngineId]) -> I) -> Result<AsyncResult, ClientError>
    where
        I: IntoIterator<Item = Input>,
        I::IntoIter: Send + 'static,
    {
        let definition = MapDefinition {
            work,
            options: self.options.clone(),
        };
        let reply = self.client.begin(definition).await?;
        let inputs = inputs(&reply.engines);
        self.client.feed(reply.map, inputs, Default::default()).await?;
        Ok(AsyncResult::new(self.client.clone(), reply.map, reply.engines))
    }

    /// The same input for each engine of a direct view.
    pub async fn everywhere(&self, work: Work, input: Bytes) -> Result<AsyncResult, ClientError> {
        self.for_each_engine(work, |engines| vec![Ok(input); engines.len()]).await
    }
}
