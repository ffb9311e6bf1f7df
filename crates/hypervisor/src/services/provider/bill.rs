//! What one call takes: reserved at first, settled and recorded at its end, whichever end
//! that is. A bill that is dropped in the middle is one whose client left.

use std::sync::Arc;
use std::time::{Duration, Instant};

use gateway::provider::{Outcome, ReplyEnd, Usage};
use tokio_util::sync::CancellationToken;
use types::{ID_LENGTH, RequestId, SandboxId, UserId};

use super::limits::{Admission, Amount};
use super::usage::Slot;
use crate::clock::Clock;
use crate::config::{NANO_DOLLARS, Price};
use crate::http::metrics::{Ended, Metrics};
use crate::store::CallRow;

/// Bytes of a request that make about one token.
const BYTES_PER_TOKEN: u64 = 4;

/// Tokens of a reply that is expected when the request names no bound.
const EXPECTED_OUTPUT: u64 = 1024;

/// The most tokens that are reserved for a reply; no model writes as many. A request that
/// names a bound that is none takes no more from the others.
const MOST_OUTPUT: u64 = 1 << 17;

/// Tokens that a model writes in a second, where nothing of what it wrote was seen.
const TOKENS_PER_SECOND: u64 = 50;

/// Who calls, for the record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    pub(super) sandbox: SandboxId,
    pub(super) user: UserId,
    pub(super) request: RequestId,
}

/// One call's bill.
#[derive(Debug)]
pub(super) struct Bill {
    pub(super) who: Who,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) began: Instant,
    pub(super) provider: String,
    pub(super) model: String,
    /// For metrics: what kind of call it is.
    pub(super) operation: &'static str,
    pub(super) price: Option<Price>,
    /// Bytes of the request that are read by the token.
    pub(super) request_bytes: u64,
    /// Whether it costs what a call costs, where the reply does not tell its tokens.
    pub(super) by_call: bool,
    /// The most tokens it may be answered with, by the request.
    pub(super) max_output: Option<u64>,
    /// Of the sandbox, the user and the provider.
    pub(super) admissions: Vec<Admission>,
    pub(super) slot: Option<Slot>,
    /// Whether it costs nothing unless the reply says otherwise.
    pub(super) free: bool,
    /// Whether anything of it went up.
    pub(super) sent: bool,
    pub(super) status: u16,
    /// The caller's right to call.
    pub(super) right: CancellationToken,
}

/// What a call is expected to take.
pub(super) fn expected(
    request_bytes: u64,
    max_output: Option<u64>,
    price: Option<Price>,
) -> Amount {
    let usage = Usage {
        input: request_bytes / BYTES_PER_TOKEN,
        output: expected_output(max_output),
        ..Usage::default()
    };
    Amount {
        tokens: usage.input.saturating_add(usage.output),
        money: cost(usage, price),
    }
}

fn expected_output(max_output: Option<u64>) -> u64 {
    max_output.unwrap_or(EXPECTED_OUTPUT).min(MOST_OUTPUT)
}

/// What tokens cost, in billionths of a US dollar.
fn cost(usage: Usage, price: Option<Price>) -> i64 {
    let Some(price) = price else { return 0 };
    let cached = usage.cached.min(usage.input);
    let part = |tokens: u64, per_million: i64| i128::from(tokens) * i128::from(per_million);
    let rest = usage.input - cached;
    let stored = usage.stored.min(rest);
    let long = usage.stored_long.min(stored);
    let sum = part(rest - stored, price.input)
        + part(cached, price.cached_input)
        + part(stored - long, price.cache_write)
        + part(long, price.cache_write_1h)
        + part(usage.output, price.output);
    i64::try_from(sum / 1_000_000).unwrap_or(i64::MAX)
}

impl Bill {
    /// What the call is expected to take at a price.
    pub(super) fn expected(&self, price: Option<Price>) -> Amount {
        let mut amount = expected(self.request_bytes, self.max_output, price);
        if self.by_call {
            amount.money = amount.money.max(self.by_the_call(price));
        }
        amount
    }

    /// What a call with files costs whose reply does not tell its tokens. Without a price for it
    /// what as much text would cost: dear, but never free.
    fn by_the_call(&self, price: Option<Price>) -> i64 {
        let as_text = || expected(self.request_bytes, self.max_output, price).money;
        price.and_then(|price| price.call).unwrap_or_else(as_text)
    }

    /// The call has ended.
    pub(super) fn settle(mut self: Box<Self>, end: ReplyEnd) {
        if let Some(slot) = self.slot.take() {
            self.close(slot, end);
        }
    }

    fn close(&mut self, slot: Slot, mut end: ReplyEnd) {
        if !self.sent {
            // Refused: no call was made, and what was reserved is given back.
            self.admissions.clear();
            return;
        }
        // A connection that went with the caller's right did not leave by itself.
        if end.outcome == Outcome::ClientGone && self.right.is_cancelled() {
            end.outcome = Outcome::Cut;
        }
        let latency = end.ended.saturating_duration_since(self.began);
        let (usage, estimated) = self.usage(&end, latency);
        let cost = if self.by_call && end.usage.is_none() && estimated {
            self.by_the_call(self.price)
        } else {
            cost(usage, self.price)
        };
        let used = Amount {
            tokens: usage.input.saturating_add(usage.output),
            money: cost,
        };
        let at = self.clock.now_ms();
        for admission in self.admissions.drain(..) {
            admission.settle(used, at);
        }
        let first_byte = end
            .first_byte
            .map(|at| at.saturating_duration_since(self.began));
        self.metrics
            .provider_call(&self.provider, self.status, first_byte);
        self.metrics.models().call(&Ended {
            provider: &self.provider,
            model: &self.model,
            operation: self.operation,
            request: self.who.request,
            sandbox: self.who.sandbox,
            user: self.who.user,
            status: self.status,
            outcome: end.outcome.as_str(),
            input: usage.input,
            output: usage.output,
            cached: usage.cached,
            cost,
            took: latency,
            first_byte,
            at,
        });
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let row = CallRow {
            request_id: self.who.request,
            at,
            sandbox_id: self.who.sandbox,
            user_id: self.who.user,
            provider: std::mem::take(&mut self.provider),
            model: std::mem::take(&mut self.model),
            status: self.status,
            outcome: end.outcome.as_str(),
            latency_ms: millis(latency),
            first_byte_ms: first_byte.map(millis),
            input_tokens: usage.input,
            output_tokens: usage.output,
            cached_tokens: usage.cached,
            estimated,
            cost,
            ok: self.status < 400 && end.outcome == Outcome::Complete,
        };
        log(&row);
        slot.record(row);
    }

    /// What the call took, and whether that is an estimate of ours.
    fn usage(&self, end: &ReplyEnd, latency: Duration) -> (Usage, bool) {
        // A refusal costs nothing, whoever's it is; a call that was cut before it was answered
        // was not refused.
        let is_refusal = self.status >= 400 && !(end.outcome == Outcome::Cut && end.bytes == 0);
        if end.usage.is_none() && (is_refusal || self.free) {
            return (Usage::default(), false);
        }
        if end.usage.is_none() && self.by_call {
            // Neither sound nor a picture has tokens that anybody here could count.
            return (Usage::default(), true);
        }
        let written = written(end, self.max_output, latency);
        let read = self.request_bytes / BYTES_PER_TOKEN;
        match end.usage {
            // A stream that did not end well has told what it took at its beginning at best.
            Some(usage) if end.outcome != Outcome::Complete && written > usage.output => {
                let usage = Usage {
                    output: written,
                    ..usage
                };
                (usage, true)
            }
            Some(usage) => (usage, false),
            None => {
                let usage = Usage {
                    input: read,
                    output: written,
                    ..Usage::default()
                };
                (usage, true)
            }
        }
    }
}

/// About how many tokens were written, by what was seen of them.
fn written(end: &ReplyEnd, max_output: Option<u64>, latency: Duration) -> u64 {
    if end.bytes == 0 && end.outcome != Outcome::Complete {
        // Of an answer that comes in one piece nothing was seen, and yet it was being written.
        let by_now = latency.as_secs().saturating_mul(TOKENS_PER_SECOND);
        return by_now.min(expected_output(max_output)).max(1);
    }
    end.events.max(1)
}

/// The usage line: one for each call, with these fields and no others; `cost` in US dollars.
fn log(call: &CallRow) {
    #[expect(
        clippy::cast_precision_loss,
        reason = "exact up to nine million dollars"
    )]
    let cost = call.cost as f64 / NANO_DOLLARS;
    let [mut sandbox, mut user, mut request] = [[0; ID_LENGTH]; 3];
    tracing::info!(
        sandbox_id = call.sandbox_id.encode(&mut sandbox),
        user_id = call.user_id.encode(&mut user),
        provider = call.provider,
        model = call.model,
        status = call.status,
        latency_ms = call.latency_ms,
        first_byte_ms = call.first_byte_ms,
        input_tokens = call.input_tokens,
        output_tokens = call.output_tokens,
        cached_tokens = call.cached_tokens,
        cost,
        request_id = call.request_id.encode(&mut request),
        outcome = call.outcome,
        "model call"
    );
}

impl Drop for Bill {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.close(slot, ReplyEnd::without_a_byte(Outcome::ClientGone));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICE: Price = Price {
        input: 2_500_000_000,
        output: 10_000_000_000,
        cached_input: 1_250_000_000,
        cache_write: 3_000_000_000,
        cache_write_1h: 5_000_000_000,
        call: None,
    };

    #[test]
    fn tokens_cost_what_the_prices_say() {
        let usage = Usage {
            input: 1000,
            output: 100,
            cached: 400,
            ..Usage::default()
        };
        // 600 × 2.5 + 400 × 1.25 + 100 × 10 micro-dollars.
        assert_eq!(cost(usage, Some(PRICE)), 3_000_000);
        let stored = Usage {
            stored: 500,
            stored_long: 200,
            ..usage
        };
        // 100 × 2.5 + 400 × 1.25 + 300 × 3 + 200 × 5 + 100 × 10 micro-dollars.
        assert_eq!(cost(stored, Some(PRICE)), 3_650_000);
        assert_eq!(cost(usage, None), 0);
        let odd = Usage {
            cached: 5000,
            stored: 5000,
            stored_long: 9000,
            ..usage
        };
        assert_eq!(cost(odd, Some(PRICE)), 2_250_000, "never less than nothing");
        let huge = Usage {
            input: u64::MAX,
            ..usage
        };
        assert_eq!(cost(huge, Some(PRICE)), i64::MAX);
    }

    #[test]
    fn what_is_not_seen_is_estimated_by_the_time_it_took() {
        let end = |outcome, events, bytes| ReplyEnd {
            events,
            bytes,
            ..ReplyEnd::without_a_byte(outcome)
        };
        let took = Duration::from_secs(10);
        let unseen = end(Outcome::ClientGone, 0, 0);
        assert_eq!(written(&unseen, None, took), 500);
        assert_eq!(written(&unseen, Some(100), took), 100);
        assert_eq!(written(&unseen, Some(0), took), 1);
        assert_eq!(written(&unseen, None, Duration::ZERO), 1);
        assert_eq!(written(&unseen, None, took * 1000), EXPECTED_OUTPUT);
        assert_eq!(written(&end(Outcome::Cut, 7, 70), None, took), 7);
        assert_eq!(written(&end(Outcome::Complete, 0, 0), None, took), 1);
    }

    #[test]
    fn what_is_expected_counts_the_request_and_the_bound_of_the_reply() {
        let amount = expected(4000, Some(500), Some(PRICE));
        assert_eq!((amount.tokens, amount.money), (1500, 7_500_000));
        assert_eq!(expected(0, None, None).tokens, EXPECTED_OUTPUT);
        assert_eq!(expected(0, Some(u64::MAX), None).tokens, MOST_OUTPUT);
    }
}
