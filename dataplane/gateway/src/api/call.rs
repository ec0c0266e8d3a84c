//! One HTTP call with its retries, redirects, deadline and size limit.
//!
//! Redirects are followed within the origin of the call only: whoever answers there was configured, whoever it points to was not,
//! and must get neither the credentials nor a way to show its pages to clients.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fault::{Backoff, Class};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::header::{HeaderMap, LOCATION};
use hyper::{Method, StatusCode};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::aws_lc_rs;
use url::Url;

use super::lanes::{Crowded, Lanes};
use super::{CallError, Request};
use crate::metrics::Metrics;

const ATTEMPTS: u32 = 4;
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
const REDIRECTS: usize = 5;
/// Of the body of an answer that is an error, what is read at all: clients are shown the beginning of it.
const ERROR_BYTES: usize = 4 * 1024;

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Mutate,
    Query,
    Cleanup,
    ValidateAuth,
    Keys,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Mutate => "mutate",
            Operation::Query => "query",
            Operation::Cleanup => "cleanup",
            Operation::ValidateAuth => "validate_auth",
            Operation::Keys => "jwks",
        }
    }
}

/// The pooled HTTP client.
#[derive(Clone)]
pub(crate) struct Caller {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    timeout: Duration,
    response_bytes_max: usize,
    metrics: Metrics,
}

impl Caller {
    pub(crate) fn new(timeout: Duration, response_bytes_max: usize, metrics: Metrics) -> Result<Caller, rustls::Error> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(Duration::from_secs(10)));
        let provider = std::sync::Arc::new(aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let tls = match tls.clone().with_native_roots() {
            Ok(tls) => tls.with_no_client_auth(),
            Err(error) => {
                tracing::warn!(%error, "no certificate authorities found; https calls of API servers will fail");
                tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
            }
        };
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(64)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Caller { client, timeout, response_bytes_max, metrics })
    }

    /// Posts JSON, when it is the turn of `lane`, and returns the body of a 2xx answer.
    pub(crate) async fn post(
        &self,
        operation: Operation,
        request: &Request,
        body: Bytes,
        (lanes, lane): (&Lanes, &str),
    ) -> Result<Bytes, CallError> {
        let waiting = Counted::new(&self.metrics.api_waiting, operation.name());
        let _turn = lanes.turn(lane, body.len()).await.map_err(|Crowded| {
            self.metrics.api_requests.with_label_values(&[operation.name(), CallError::Crowded.result()]).inc();
            CallError::Crowded
        })?;
        drop(waiting);
        self.measured(operation, Method::POST, &request.url, &request.headers, body, self.timeout).await
    }

    pub(crate) async fn get(&self, operation: Operation, url: &Url, timeout: Duration) -> Result<Bytes, CallError> {
        self.measured(operation, Method::GET, url, &HeaderMap::new(), Bytes::new(), timeout).await
    }

    async fn measured(
        &self,
        operation: Operation,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let name = operation.name();
        let started = Instant::now();
        let in_flight = Counted::new(&self.metrics.api_in_flight, name);
        let attempts = self.attempts(name, method, url, headers, body);
        let result = match tokio::time::timeout(timeout, attempts).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Timeout(timeout.as_secs())),
        };
        drop(in_flight);
        let label = match &result {
            Ok(_) => "success",
            Err(error) => error.result(),
        };
        self.metrics.api_requests.with_label_values(&[name, label]).inc();
        self.metrics.api_request_duration.with_label_values(&[name]).observe(started.elapsed().as_secs_f64());
        if let Err(error) = &result {
            tracing::warn!(operation = name, host = url.host_str(), %error, "API call failed");
        }
        result
    }

    async fn attempts(
        &self,
        name: &'static str,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Bytes, CallError> {
        let (mut attempt, mut retry) = (1, RETRY);
        loop {
            self.metrics.api_attempts.with_label_values(&[name]).inc();
            let error = match self.follow(method.clone(), url.clone(), headers.clone(), body.clone()).await {
                Ok((status, body)) if status.is_success() => return Ok(body),
                Ok((status, body)) => {
                    CallError::of_status(status.as_u16(), String::from_utf8_lossy(&body).into_owned())
                }
                Err(error) => error,
            };
            if error.entry().class != Class::Passes || attempt == ATTEMPTS {
                return Err(error);
            }
            tokio::time::sleep(retry.pause()).await;
            attempt += 1;
        }
    }

    /// One request and its redirects, the way browsers follow them.
    async fn follow(
        &self,
        mut method: Method,
        mut url: Url,
        mut headers: HeaderMap,
        mut body: Bytes,
    ) -> Result<(StatusCode, Bytes), CallError> {
        for _ in 0..=REDIRECTS {
            let mut request = hyper::Request::new(Full::new(body.clone()));
            *request.method_mut() = method.clone();
            *request.uri_mut() =
                url.as_str().parse().map_err(|_| CallError::Refused("the URL cannot be requested".to_owned()))?;
            *request.headers_mut() = headers.clone();
            let response = self.client.request(request).await.map_err(|error| unreachable(&error))?;
            let status = response.status();
            if status.is_success() {
                return Ok((status, self.read(response.into_body()).await?));
            }
            if !status.is_redirection() {
                return Ok((status, beginning(response.into_body()).await));
            }
            let followed = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
            let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok()).filter(|_| followed);
            let Some(location) = location else { return Ok((status, Bytes::new())) };
            let next = url.join(location).ok().filter(|next| next.origin() == url.origin());
            url = next.ok_or_else(|| {
                CallError::Refused(format!(
                    "the API server answered with status {status}, a redirect to another origin"
                ))
            })?;
            if status == StatusCode::SEE_OTHER || (matches!(status.as_u16(), 301 | 302) && method == Method::POST) {
                method = Method::GET;
                body = Bytes::new();
                headers.remove(hyper::header::CONTENT_TYPE);
            }
        }
        Err(CallError::Refused(format!("the API server redirected more than {REDIRECTS} times")))
    }

    async fn read(&self, body: hyper::body::Incoming) -> Result<Bytes, CallError> {
        match Limited::new(body, self.response_bytes_max).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(CallError::TooLong(self.response_bytes_max)),
            Err(error) => Err(CallError::Network(error.to_string())),
        }
    }
}

/// What an error says first; the rest is not waited for.
async fn beginning(mut body: hyper::body::Incoming) -> Bytes {
    let mut text = Vec::new();
    while text.len() < ERROR_BYTES
        && let Some(Ok(frame)) = body.frame().await
    {
        text.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
    }
    text.truncate(ERROR_BYTES);
    text.into()
}

fn unreachable(error: &(dyn std::error::Error + 'static)) -> CallError {
    let cause = root_cause(error);
    if is_out_of_something(error) { CallError::Exhausted(cause) } else { CallError::Network(cause) }
}

/// Whether it is this node that cannot make another connection: for want of descriptors, memory or local ports.
fn is_out_of_something(error: &(dyn std::error::Error + 'static)) -> bool {
    // ENFILE, EMFILE, ENOMEM, EADDRNOTAVAIL, ENOBUFS: the standard library has no kinds for most of them.
    const CODES: &[i32] = &[23, 24, 12, 99, 105];
    let mut cause = Some(error);
    while let Some(error) = cause {
        let code = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        if code.is_some_and(|code| CODES.contains(&code)) {
            return true;
        }
        cause = error.source();
    }
    // A name that cannot be looked up for want of a descriptor says nothing of it.
    std::fs::File::open("/dev/null").is_err_and(|error| error.raw_os_error().is_some_and(|code| CODES.contains(&code)))
}

/// The innermost error says what happened ("connection refused"); the outer ones only where.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Counts in the gauge of an operation while it lives.
struct Counted(prometheus::IntGauge);

impl Counted {
    fn new(gauges: &prometheus::IntGaugeVec, operation: &str) -> Counted {
        let gauge = gauges.with_label_values(&[operation]);
        gauge.inc();
        Counted(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
