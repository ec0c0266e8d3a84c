//! How much is below a generation's folder in the backup's store.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, retry::RetryConfig};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata as _, SdkError};
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Error;

use super::inputs::beside;
use super::slot::Question;
use super::{Servers, Store};
use crate::observe::StoreFault;

const TIME_MAX: Duration = Duration::from_secs(10);
/// Counted up to here: more is not wanted to know.
const OBJECTS_MAX: i32 = 1000;
const TEXT_MAX: usize = 300;

/// Counts one generation's objects.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Prefix(pub Store);

impl Question for Prefix {
    type Answer = Result<u64, StoreFault>;
    const DOUBTS: u32 = 1;

    async fn ask(self, servers: Arc<Servers>) -> Self::Answer {
        let answer = servers.stores.count(&self.0).await;
        if let Err(fault) = &answer {
            tracing::debug!(url = self.0.url, ?fault, "the backup's store cannot be looked at");
        }
        answer
    }

    fn is_bad(answer: &Self::Answer) -> bool {
        answer.is_err()
    }

    fn is_news(old: &Self::Answer, new: &Self::Answer) -> bool {
        let is_empty = |answer: &Self::Answer| answer.clone().map(|objects| objects == 0);
        is_empty(old) != is_empty(new)
    }

    fn inherits(&self, old: &Prefix) -> bool {
        let place = |Prefix(store): &Prefix| (store.url.clone(), store.generation.clone(), store.endpoint.clone());
        place(self) == place(old)
    }
}

/// One for all stores: connections are shared, keys come with each request.
#[derive(Debug)]
pub(super) struct Client(aws_sdk_s3::Client);

impl Client {
    pub fn new() -> Client {
        let limits = TimeoutConfig::builder().connect_timeout(TIME_MAX / 2).operation_timeout(TIME_MAX).build();
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .retry_config(RetryConfig::disabled())
            .timeout_config(limits)
            .build();
        Client(aws_sdk_s3::Client::from_conf(config))
    }

    pub async fn count(&self, store: &Store) -> Result<u64, StoreFault> {
        let url = store.url.trim_start_matches("s3://");
        let (bucket, path) = url.split_once('/').unwrap_or((url, ""));
        // The slash at the end keeps v1 and v10 apart.
        let path = path.trim_matches('/');
        let folder = if path.is_empty() { String::new() } else { format!("{path}/") };
        let prefix = format!("{folder}{}/", store.generation);
        if [&store.access_key_id, &store.secret_access_key].iter().any(|key| key.reveal().contains(char::is_whitespace))
        {
            let text = "a key of the store holds a space or a line end; write the Secret without it";
            return Err(StoreFault::AccessDenied(text.to_owned()));
        }
        let token = store.session_token.as_ref().map(|token| token.reveal().to_owned());
        let keys =
            Credentials::new(store.access_key_id.reveal(), store.secret_access_key.reveal(), token, None, "secret");
        let mut place = aws_sdk_s3::config::Builder::new().credentials_provider(keys);
        if let Some(region) = &store.region {
            place = place.region(Region::new(region.clone()));
        }
        if let Some(endpoint) = &store.endpoint {
            place = place.endpoint_url(as_pods_find(endpoint, &store.namespace)).force_path_style(true);
        }
        let request = self.0.list_objects_v2().bucket(bucket).prefix(prefix).max_keys(OBJECTS_MAX);
        let page = request.customize().config_override(place).send().await.map_err(|error| fault(bucket, &error))?;
        let listed = page.contents().len();
        Ok(u64::try_from(listed).unwrap_or(u64::MAX))
    }
}

/// An endpoint whose host has no dots is a Service beside the pods. With TLS the name is part of the certificate, and stays.
fn as_pods_find(endpoint: &str, namespace: &str) -> String {
    let Some(rest) = endpoint.strip_prefix("http://") else { return endpoint.to_owned() };
    let (host, after) = rest.split_at(rest.find([':', '/', '[']).unwrap_or(rest.len()));
    beside(host, namespace).map_or_else(|| endpoint.to_owned(), |name| format!("http://{name}{after}"))
}

fn fault(bucket: &str, error: &SdkError<ListObjectsV2Error>) -> StoreFault {
    let status = error.raw_response().map(|response| response.status().as_u16());
    let code = error.code().unwrap_or_default();
    match (code, status) {
        ("NoSuchBucket", _) | (_, Some(404)) => StoreFault::NoSuchBucket(format!("there is no bucket {bucket}")),
        (_, Some(401 | 403)) => {
            let reason = if code.is_empty() { "without a reason" } else { code };
            StoreFault::AccessDenied(format!("the store denies access to bucket {bucket} ({reason})"))
        }
        ("PermanentRedirect" | "AuthorizationHeaderMalformed", _) | (_, Some(301)) => {
            StoreFault::Unreachable(format!("bucket {bucket} is in another region"))
        }
        _ => {
            let cause = match error {
                SdkError::DispatchFailure(_) => "it cannot be reached".to_owned(),
                SdkError::TimeoutError(_) => format!("it did not answer within {} s", TIME_MAX.as_secs()),
                _ => format!("{}", DisplayErrorContext(error)),
            };
            let line = cause.chars().map(|c| if c.is_control() { ' ' } else { c });
            StoreFault::Unreachable(format!(
                "the store of bucket {bucket}: {}",
                line.take(TEXT_MAX).collect::<String>()
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::as_pods_find;

    #[test]
    fn endpoints_without_dots_are_services_beside_the_pods() {
        for (endpoint, found) in [
            ("http://minio:9000", "http://minio.web.svc:9000"),
            ("http://minio", "http://minio.web.svc"),
            ("http://minio/path", "http://minio.web.svc/path"),
            ("http://s3.example.com:9000", "http://s3.example.com:9000"),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
            ("http://[::1]:9000", "http://[::1]:9000"),
            ("https://minio:9000", "https://minio:9000"),
        ] {
            assert_eq!(as_pods_find(endpoint, "web"), found);
        }
    }
}
