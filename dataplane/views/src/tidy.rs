//! What materialisations keep beyond their graphs, under budgets.

use std::time::Instant;

use rows::Version;

use crate::limits::Limits;
use crate::materialisation::MaterialisationId;
use crate::materialisations::Materialisations;
use crate::payload::Payload;

/// Less history than this is worth keeping beside any payload.
const HISTORY_BYTES_MIN: usize = 64 << 10;

impl Materialisations {
    /// Frees what is idle or over budget. Everything up to `durable` is in the database.
    pub fn tidy(&mut self, now: Instant, durable: Version, limits: &Limits) {
        let idle: Vec<MaterialisationId> = self
            .by_id
            .iter()
            .filter(|(_, m)| m.idle_since.is_some_and(|since| now - since >= limits.materialisation_idle))
            .filter(|(_, m)| m.can_be_forgotten(durable))
            .map(|(&id, _)| id)
            .collect();
        for id in idle {
            self.forget_if_idle(id);
        }
        let mut bytes = 0;
        for m in self.by_id.values_mut() {
            m.history.trim(durable, limits);
            let size = m.payload.as_ref().map_or(0, Payload::size);
            let stale = m
                .payload
                .as_ref()
                .is_some_and(|p| p.version < m.history.floor || m.history.size() > size.max(HISTORY_BYTES_MIN));
            if stale && now - m.payload_used.get() >= limits.payload_in_use {
                m.payload = None;
            } else {
                bytes += size;
            }
        }
        if bytes > limits.payload_bytes {
            bytes -= self.drop_payloads(bytes - limits.payload_bytes, now, limits);
        }
        self.metrics.payload_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.metrics.spool_memory_bytes.set(i64::try_from(self.spool.memory()).unwrap_or(i64::MAX));
        self.metrics.spool_disk_bytes.set(i64::try_from(self.spool.disk()).unwrap_or(i64::MAX));
    }

    /// Drops payloads of `excess` bytes or more, if so many are not in use. Returns how many bytes.
    fn drop_payloads(&mut self, excess: usize, now: Instant, limits: &Limits) -> usize {
        let mut unused: Vec<(Instant, MaterialisationId)> = self
            .by_id
            .iter()
            .filter(|(_, m)| m.payload.is_some() && now - m.payload_used.get() >= limits.payload_in_use)
            .map(|(&id, m)| (m.payload_used.get(), id))
            .collect();
        unused.sort_unstable();
        let mut dropped = 0;
        for (_, id) in unused {
            if dropped >= excess {
                break;
            }
            self.metrics.shed.with_label_values(&["payload"]).inc();
            dropped += self.by_id.get_mut(&id).and_then(|m| m.payload.take()).map_or(0, |p| p.size());
        }
        dropped
    }
}
