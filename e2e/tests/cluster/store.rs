//! The object store of a deployment, and the way to it, which tests can close.

use anyhow::Result;
use testkit::proxy::Proxy;
use testkit::s3::S3;

const BUCKET: &str = "replicas";

/// A real server of the S3 protocol with one bucket.
pub struct ObjectStore {
    pub server: S3,
    /// Nodes know only this address.
    pub way: Proxy,
}

impl ObjectStore {
    pub async fn start() -> Result<ObjectStore> {
        let server = S3::start(BUCKET).await?;
        let port = server.endpoint().rsplit(':').next().and_then(|port| port.parse().ok());
        let way = Proxy::relay(port.ok_or_else(|| anyhow::anyhow!("no port in {}", server.endpoint()))?).await?;
        Ok(ObjectStore { server, way })
    }

    /// Where replication-managers write.
    pub fn url(&self) -> String {
        format!("s3://{BUCKET}/app/1")
    }

    /// What every node needs to be let in.
    pub fn access(&self) -> Vec<(&'static str, String)> {
        let mut access: Vec<_> = S3::environment().into_iter().map(|(name, value)| (name, value.to_owned())).collect();
        access.push(("ZERO_LITESTREAM_ENDPOINT", format!("http://127.0.0.1:{}", self.way.port())));
        access
    }
}
