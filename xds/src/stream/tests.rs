//! The stream as a whole.

use super::*;
use crate::{LoadOptions, load_bootstrap};

/// Guards against a hang only.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn without_inotify_everything_else_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing.yaml");
    let config = format!(
        "{{node: {{id: n, cluster: c}}, dynamic_resources: {{cds_config: {{path_config_source: {{path: {:?}}}, \
         resource_api_version: V3, initial_fetch_timeout: 0.05s}}}}}}",
        missing
    );
    let options = LoadOptions { config_yaml: Some(config), ..LoadOptions::default() };
    let loaded = load_bootstrap(&options).unwrap_or_else(|e| panic!("{e}"));
    let mut stream = ConfigStream::new(&loaded).unwrap();
    stream.watcher.lose();
    // It gives up waiting for the file, as it would have taken what control planes send.
    let update = tokio::time::timeout(PATIENCE, stream.next()).await.expect("it hangs");
    assert!(update.config.clusters.is_empty());
}
