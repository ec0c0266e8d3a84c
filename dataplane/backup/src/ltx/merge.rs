//! Merges files that follow each other into one: of each page the newest content.

use std::io::{Read, Write};

use super::{Decoder, Encoder, Header};
use crate::error::Error;

struct Input<R> {
    decoder: Decoder<R>,
    /// The page that `content` holds; `None` after the last.
    number: Option<u32>,
    content: Vec<u8>,
}

impl<R: Read> Input<R> {
    fn advance(&mut self) -> Result<(), Error> {
        self.number = self.decoder.page(&mut self.content)?;
        Ok(())
    }
}

/// Writes the merger of `inputs`, which are in order and without gap, to `out`. Every input is verified; after an error what was
/// written is worthless. Returns `out` and the header written.
pub fn merge<R: Read, W: Write>(inputs: Vec<Decoder<R>>, out: W) -> Result<(W, Header), Error> {
    let (Some(first), Some(last)) = (inputs.first().map(|i| *i.header()), inputs.last().map(|i| *i.header())) else {
        return Err(Error::Nothing { at: "merge".to_owned(), reason: "there is nothing to merge".to_owned() });
    };
    let header = Header { min: first.min, ..last };
    for pair in inputs.windows(2) {
        let (a, b) = (pair[0].header(), pair[1].header());
        if a.page_size != b.page_size || b.min > a.max.next() || b.max <= a.max {
            let reason = format!("it does not continue {}", pair[0].file());
            return Err(Error::damaged(pair[1].file(), 0, reason));
        }
    }
    let failed = |e: std::io::Error| {
        let other = |e: std::io::Error| Error::Unavailable {
            at: format!("{}-{}", header.min, header.max),
            action: "write the merged file",
            cause: e.to_string(),
        };
        Error::from_io(e).unwrap_or_else(other)
    };
    let mut encoder = Encoder::new(out, header).map_err(failed)?;
    let mut inputs: Vec<Input<R>> = inputs
        .into_iter()
        .map(|decoder| Input { decoder, number: Some(0), content: vec![0; header.page_size as usize] })
        .collect();
    for input in &mut inputs {
        input.advance()?;
    }
    while let Some(number) = inputs.iter().filter_map(|i| i.number).min() {
        let newest = inputs.iter().rposition(|i| i.number == Some(number)).expect("the minimum is one of them");
        // Pages beyond the end were cut off later.
        if number <= header.commit {
            encoder.page(number, &inputs[newest].content).map_err(failed)?;
        }
        for input in &mut inputs[..=newest] {
            if input.number == Some(number) {
                input.advance()?;
            }
        }
    }
    for input in inputs {
        input.decoder.finish()?;
    }
    let (out, _) = encoder.finish().map_err(failed)?;
    Ok((out, header))
}
