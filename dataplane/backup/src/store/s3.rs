//! A backup in a bucket of S3 or anything that speaks its protocol.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Credentials, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier};
use bytes::Bytes;
use fault::{Backoff, Class};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use super::{Body, Note, Store};
use crate::Options;
use crate::error::Error;
use crate::name::Name;
use crate::plan::File;
use crate::stream::Part;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the request to the first byte of the answer.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// One try of one request; a part of 16 MiB may take as long over 2 Mbit/s.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(90);
const ATTEMPTS: u32 = 4;
/// S3 takes no more parts of one object.
const PARTS_MAX: i32 = 10_000;
/// When the body of an answer breaks off, which the SDK does not repeat.
const BODY_RETRIES: u32 = 3;
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
/// S3 takes no more objects in one request to delete them.
const DELETED_AT_ONCE: usize = 1000;
/// Where Litestream looks for the time of a file.
const TIMESTAMP: &str = "litestream-timestamp";
const LINEAGE: &str = "zero-lineage";

#[derive(Debug)]
pub struct Bucket {
    client: Client,
    bucket: String,
    /// Without slashes at the ends; may be empty.
    path: String,
    part_size: usize,
    part_concurrency: usize,
}

/// Anything in the bucket.
#[derive(Clone, Debug)]
pub struct Object {
    pub key: String,
    /// `None` if the store does not say.
    pub modified: Option<SystemTime>,
}

impl Bucket {
    pub async fn new(url: &url::Url, options: &Options) -> Result<Bucket, Error> {
        let refused = |reason: &str| Error::Refused { at: super::printable(&options.url), reason: reason.to_owned() };
        let bucket = url.host_str().filter(|host| !host.is_empty());
        let bucket = bucket.ok_or_else(|| refused("it names no bucket; use s3://bucket/path"))?.to_owned();
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(refused(
                "it must be only s3://bucket/path; credentials come from AWS_ACCESS_KEY_ID and the like",
            ));
        }
        let path = percent_encoding::percent_decode_str(url.path().trim_matches('/')).decode_utf8();
        let path = path.map_err(|_| refused("its path is not UTF-8"))?.into_owned();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .read_timeout(READ_TIMEOUT)
                    .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                    .build(),
            );
        if let Some(region) = &options.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(key) = &options.credentials {
            let key = Credentials::new(&key.access_key_id, &key.secret_access_key, None, None, "options");
            loader = loader.credentials_provider(key);
        }
        let shared = loader.load().await;
        // Files carry a checksum of their own; not every store understands the newer ones of the protocol.
        let mut config = aws_sdk_s3::config::Builder::from(&shared)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        if shared.region().is_none() {
            config = config.region(Region::new("us-east-1"));
        }
        if let Some(endpoint) = &options.endpoint {
            config = config.endpoint_url(endpoint);
        }
        // A store at an address of its own rarely has a host name for each bucket.
        let by_environment = shared.endpoint_url().is_some() || std::env::var_os("AWS_ENDPOINT_URL_S3").is_some();
        config = config.force_path_style(options.endpoint.is_some() || by_environment);
        Ok(Bucket {
            client: Client::from_conf(config.build()),
            bucket,
            path,
            part_size: options.multipart_size,
            part_concurrency: options.part_concurrency(),
        })
    }

    fn prefixed(&self, rest: &str) -> String {
        if self.path.is_empty() { rest.to_owned() } else { format!("{}/{rest}", self.path) }
    }

    fn key(&self, name: Name) -> String {
        self.prefixed(&name.key())
    }

    fn failed<E>(&self, name: Option<Name>, action: &'static str, error: &SdkError<E>) -> Error
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
    {
        let at = self.location(name);
        let status = error.raw_response().map(|r| r.status().as_u16());
        let code = error.code().unwrap_or_default();
        let cause = DisplayErrorContext(error).to_string();
        match (code, status) {
            ("NoSuchBucket", _) => {
                Error::Refused { at, reason: format!("bucket '{}' does not exist; create it", self.bucket) }
            }
            ("NoSuchKey" | "NotFound", _) | (_, Some(404)) => Error::Missing { name: at },
            ("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "AccessDenied" | "ExpiredToken", _)
            | (_, Some(401 | 403)) => Error::Denied { at, reason: denied(action, code) },
            ("PermanentRedirect" | "AuthorizationHeaderMalformed", _) | (_, Some(301)) => {
                let reason = format!("{action}: the bucket is in another region ({code}); set ZERO_LITESTREAM_REGION");
                Error::Refused { at, reason }
            }
            _ if cause.contains("CredentialsNotLoaded") || cause.contains("no providers in chain") => {
                let reason = "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the node a role";
                Error::Denied { at, reason: reason.to_owned() }
            }
            _ if matches!(error, SdkError::DispatchFailure(_) | SdkError::TimeoutError(_)) => {
                Error::Unavailable { at, action, cause: format!("the store cannot be reached: {cause}") }
            }
            _ => Error::Unavailable { at, action, cause },
        }
    }

    async fn put_whole(&self, name: Name, bytes: Bytes, note: &Note) -> Result<u64, Error> {
        let size = bytes.len() as u64;
        let request = self.client.put_object().bucket(&self.bucket).key(self.key(name));
        let request = request.set_metadata(Some(metadata(note))).body(ByteStream::from(bytes));
        request.send().await.map_err(|e| self.failed(Some(name), "upload", &e))?;
        Ok(size)
    }

    async fn put_parts(&self, name: Name, mut parts: mpsc::Receiver<Part>, note: &Note) -> Result<u64, Error> {
        let first = match parts.recv().await {
            Some(Part::Bytes(bytes)) => bytes,
            Some(Part::End) => Bytes::new(),
            None => return Err(Error::Cancelled),
        };
        if first.len() < self.part_size {
            // The only part, if its end follows.
            return match parts.recv().await {
                Some(Part::End) => self.put_whole(name, first, note).await,
                _ => Err(Error::Cancelled),
            };
        }
        let request = self.client.create_multipart_upload().bucket(&self.bucket).key(self.key(name));
        let started = request.set_metadata(Some(metadata(note))).send().await;
        let started = started.map_err(|e| self.failed(Some(name), "start the upload", &e))?;
        let id = started.upload_id().unwrap_or_default().to_owned();
        let abort =
            Abort { client: self.client.clone(), bucket: self.bucket.clone(), key: self.key(name), id: Some(id) };
        let size = self.send_parts(name, first, parts, abort.id.as_deref().unwrap_or_default()).await?;
        abort.disarm();
        Ok(size)
    }

    async fn send_parts(
        &self,
        name: Name,
        first: Bytes,
        mut parts: mpsc::Receiver<Part>,
        id: &str,
    ) -> Result<u64, Error> {
        let mut size = 0;
        let mut number = 0;
        let mut done = Vec::new();
        let mut sending = FuturesUnordered::new();
        let mut next = Some(first);
        let mut is_complete = false;
        while !(is_complete && sending.is_empty()) {
            if let Some(bytes) = next.take() {
                size += bytes.len() as u64;
                number += 1;
                if number > PARTS_MAX {
                    let reason =
                        format!("the file needs more than {PARTS_MAX} parts; raise ZERO_LITESTREAM_MULTIPART_SIZE");
                    return Err(Error::Refused { at: self.location(Some(name)), reason });
                }
                sending.push(self.send_part(name, id, number, bytes));
            }
            tokio::select! {
                sent = sending.next(), if !sending.is_empty() => done.extend(sent.transpose()?),
                part = parts.recv(), if !is_complete && sending.len() < self.part_concurrency => match part {
                    Some(Part::Bytes(bytes)) => next = Some(bytes),
                    Some(Part::End) => is_complete = true,
                    None => return Err(Error::Cancelled),
                },
            }
        }
        done.sort_by_key(CompletedPart::part_number);
        let request = self.client.complete_multipart_upload().bucket(&self.bucket).key(self.key(name)).upload_id(id);
        let upload = CompletedMultipartUpload::builder().set_parts(Some(done)).build();
        let completed = request.multipart_upload(upload).send().await;
        completed.map_err(|e| self.failed(Some(name), "complete the upload", &e))?;
        Ok(size)
    }

    async fn send_part(&self, name: Name, id: &str, number: i32, bytes: Bytes) -> Result<CompletedPart, Error> {
        let request = self.client.upload_part().bucket(&self.bucket).key(self.key(name)).upload_id(id);
        let sent = request.part_number(number).body(ByteStream::from(bytes)).send().await;
        let sent = sent.map_err(|e| self.failed(Some(name), "upload a part", &e))?;
        Ok(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build())
    }

    async fn get_once(&self, name: Name, range: &Range<u64>) -> Result<Bytes, Error> {
        let request = self.client.get_object().bucket(&self.bucket).key(self.key(name));
        let request = request.range(format!("bytes={}-{}", range.start, range.end - 1));
        let answer = request.send().await.map_err(|e| self.failed(Some(name), "download", &e))?;
        let broken = |cause: String| Error::Unavailable { at: self.location(Some(name)), action: "download", cause };
        let bytes = answer.body.collect().await.map_err(|e| broken(e.to_string()))?.into_bytes();
        if bytes.len() as u64 != range.end - range.start {
            return Err(broken(format!("{} bytes came instead of {}", bytes.len(), range.end - range.start)));
        }
        Ok(bytes)
    }

    /// A page of everything below the path, and where the next one begins.
    pub async fn page(&self, token: Option<String>) -> Result<(Vec<Object>, Option<String>), Error> {
        let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(self.prefixed(""));
        let answer = request.set_continuation_token(token).send().await.map_err(|e| self.list_failed(None, &e))?;
        let objects = answer.contents().iter().filter_map(|object| {
            let modified = object.last_modified().and_then(|time| SystemTime::try_from(*time).ok());
            Some(Object { key: object.key()?.to_owned(), modified })
        });
        let objects = objects.collect();
        Ok((objects, answer.next_continuation_token().map(str::to_owned)))
    }

    /// Deletes objects by their keys, at most a page of them at once.
    pub async fn delete_all(&self, keys: Vec<String>) -> Result<(), Error> {
        for keys in keys.chunks(DELETED_AT_ONCE) {
            let identifiers = keys.iter().filter_map(|key| ObjectIdentifier::builder().key(key).build().ok());
            let Ok(batch) = Delete::builder().set_objects(Some(identifiers.collect())).quiet(true).build() else {
                continue;
            };
            match self.client.delete_objects().bucket(&self.bucket).delete(batch).send().await {
                Ok(answer) => {
                    if let Some(error) = answer.errors().first() {
                        let at = self.address(error.key().unwrap_or_default());
                        let code = error.code().unwrap_or("no reason given");
                        let cause = error.message().unwrap_or_default();
                        return Err(match code {
                            "AccessDenied" => Error::Denied { at, reason: denied("delete", code) },
                            _ => Error::Unavailable { at, action: "delete", cause: format!("{code} {cause}") },
                        });
                    }
                }
                Err(error) if is_unknown(&error) => self.delete_singly(keys).await?,
                Err(error) => return Err(self.failed(None, "delete", &error)),
            }
        }
        Ok(())
    }

    /// For stores that do not know how to delete several objects at once.
    async fn delete_singly(&self, keys: &[String]) -> Result<(), Error> {
        for key in keys {
            let request = self.client.delete_object().bucket(&self.bucket).key(key);
            request.send().await.map_err(|e| self.failed(None, "delete", &e))?;
        }
        Ok(())
    }

    /// Of an object, for messages.
    pub fn address(&self, key: &str) -> String {
        let key = if key.is_empty() { self.prefixed("") } else { key.to_owned() };
        format!("s3://{}/{key}", self.bucket)
    }

    fn list_failed<E>(&self, name: Option<Name>, error: &SdkError<E>) -> Error
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
    {
        match self.failed(name, "list", error) {
            // A store that answers so has no such bucket.
            Error::Missing { name: at } => {
                Error::Refused { at, reason: format!("bucket '{}' does not exist; create it", self.bucket) }
            }
            error => error,
        }
    }
}

fn denied(action: &str, code: &str) -> String {
    let code = if code.is_empty() { "no reason given" } else { code };
    format!(
        "{action}: the store denies access ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the policy of the bucket"
    )
}

/// Whether the store has no such request, or wants it in a way that the SDK does not speak.
fn is_unknown<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    let is_of_old = matches!(error.code(), Some("NotImplemented" | "MissingContentMD5" | "MethodNotAllowed"));
    is_of_old || error.raw_response().is_some_and(|r| matches!(r.status().as_u16(), 405 | 501))
}

impl Store for Bucket {
    fn list(&self, level: u8, name: Option<Name>) -> BoxFuture<'_, Result<Vec<File>, Error>> {
        Box::pin(async move {
            let base = self.prefixed("");
            let prefix = name.map_or_else(|| self.prefixed(&format!("{level:04x}/")), |name| self.key(name));
            let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
            let mut pages = request.into_paginator().send();
            let mut files = Vec::new();
            while let Some(page) = pages.next().await {
                let page = page.map_err(|e| self.list_failed(name, &e))?;
                for object in page.contents() {
                    let key = object.key().and_then(|key| key.strip_prefix(&base));
                    let Some(found) = key.and_then(Name::parse) else { continue };
                    let modified = object.last_modified().and_then(|t| SystemTime::try_from(*t).ok());
                    files.push(File {
                        name: found,
                        size: object.size().and_then(|n| u64::try_from(n).ok()).unwrap_or_default(),
                        modified: modified.unwrap_or_else(SystemTime::now),
                    });
                }
            }
            files.sort_by_key(|f| f.name);
            Ok(files)
        })
    }

    fn get(&self, name: Name, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, Error>> {
        Box::pin(async move {
            let (mut tries, mut retry) = (0, RETRY);
            loop {
                match self.get_once(name, &range).await {
                    Err(error) if error.entry().class == Class::Passes && tries < BODY_RETRIES => {
                        tries += 1;
                        tokio::time::sleep(retry.pause()).await;
                    }
                    result => return result,
                }
            }
        })
    }

    fn put(&self, name: Name, body: Body, note: Note) -> BoxFuture<'_, Result<u64, Error>> {
        Box::pin(async move {
            match body {
                Body::Whole(bytes) if bytes.len() <= self.part_size => self.put_whole(name, bytes, &note).await,
                Body::Whole(mut bytes) => {
                    let (sender, parts) = mpsc::channel(bytes.len() / self.part_size + 2);
                    while !bytes.is_empty() {
                        let part = bytes.split_to(self.part_size.min(bytes.len()));
                        // There is room for all of them.
                        let _ = sender.try_send(Part::Bytes(part));
                    }
                    let _ = sender.try_send(Part::End);
                    self.put_parts(name, parts, &note).await
                }
                Body::Parts(parts) => self.put_parts(name, parts, &note).await,
            }
        })
    }

    fn delete(&self, name: Name) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let deleted = self.client.delete_object().bucket(&self.bucket).key(self.key(name)).send().await;
            match deleted.map_err(|e| self.failed(Some(name), "delete", &e)) {
                Ok(_) | Err(Error::Missing { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    fn note(&self, name: Name) -> BoxFuture<'_, Result<Option<Note>, Error>> {
        Box::pin(async move {
            let answer = self.client.head_object().bucket(&self.bucket).key(self.key(name)).send().await;
            let answer = answer.map_err(|e| self.failed(Some(name), "look at", &e))?;
            let lineage = answer.metadata().and_then(|m| m.get(LINEAGE)).cloned();
            Ok(Some(Note { timestamp_ms: 0, lineage }))
        })
    }

    fn location(&self, name: Option<Name>) -> String {
        let rest = name.map_or_else(|| self.path.clone(), |name| self.key(name));
        format!("s3://{}/{rest}", self.bucket)
    }
}

fn metadata(note: &Note) -> std::collections::HashMap<String, String> {
    let seconds = i64::try_from(note.timestamp_ms / 1000).unwrap_or_default();
    let nanoseconds = u32::try_from(note.timestamp_ms % 1000 * 1_000_000).unwrap_or_default();
    let time = aws_sdk_s3::primitives::DateTime::from_secs_and_nanos(seconds, nanoseconds);
    let time = time.fmt(aws_sdk_s3::primitives::DateTimeFormat::DateTime).unwrap_or_default();
    let lineage = note.lineage.iter().map(|lineage| (LINEAGE.to_owned(), lineage.clone()));
    [(TIMESTAMP.to_owned(), time)].into_iter().chain(lineage).collect()
}

/// Tells the store to forget the parts of an upload that is not completed.
struct Abort {
    client: Client,
    bucket: String,
    key: String,
    id: Option<String>,
}

impl Abort {
    fn disarm(mut self) {
        self.id = None;
    }
}

impl Drop for Abort {
    fn drop(&mut self) {
        let (Some(id), Ok(runtime)) = (self.id.take(), tokio::runtime::Handle::try_current()) else { return };
        let request = self.client.abort_multipart_upload().bucket(&self.bucket).key(&self.key).upload_id(id);
        runtime.spawn(async move {
            if let Err(error) = request.send().await {
                tracing::debug!(error = %DisplayErrorContext(&error), "the parts of an unfinished upload stay in the store");
            }
        });
    }
}
