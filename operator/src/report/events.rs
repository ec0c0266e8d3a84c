//! Events of a resource, as `kubectl describe` shows them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{self, EventType, Recorder, Reporter};

use crate::error::request;
use crate::plan::{Event, Severity};
use crate::settings::OPERATOR;

/// The API server refuses longer notes.
const NOTE_CHARACTERS_MAX: usize = 1000;

#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    #[must_use]
    pub fn new(client: Client, instance: Option<String>) -> Events {
        Events(Recorder::new(client, Reporter { controller: OPERATOR.to_owned(), instance }))
    }

    /// Publishes what happened. An event that cannot be published is not worth a failed reconcile: the conditions say the same.
    pub async fn publish(&self, of: &ObjectReference, happened: &[Event]) {
        for event in happened {
            // The recorder counts an event up when the same action led to the same reason before, and keeps the first note: what
            // reads differently must be another action.
            let mut hasher = DefaultHasher::new();
            event.message.hash(&mut hasher);
            let action = format!("{}-{:08x}", event.reason, hasher.finish() >> 32);
            let published = events::Event {
                type_: match event.severity {
                    Severity::Normal => EventType::Normal,
                    Severity::Warning => EventType::Warning,
                },
                reason: event.reason.to_owned(),
                note: Some(event.message.chars().take(NOTE_CHARACTERS_MAX).collect()),
                action,
                secondary: None,
            };
            let doing = || format!("publish event {}", event.reason);
            if let Err(error) = request(doing, self.0.publish(&published, of)).await {
                tracing::warn!(error = error.to_string(), "an event could not be published");
            }
        }
    }
}
