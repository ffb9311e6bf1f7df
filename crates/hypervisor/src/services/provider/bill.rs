//! What one call takes: reserved at first, settled and recorded at its end, whichever end
//! that is. A bill that is dropped in the middle is one whose client left.

use std::sync::Arc;
use std::time::Instant;

use gateway::provider::{Outcome, ReplyEnd, Usage};
use tokio_util::sync::CancellationToken;
use types::{CommandId, RequestId, SandboxId, UserId};

use super::limits::{Admission, Amount};
use super::usage::Slot;
use crate::clock::Clock;
use crate::config::Price;
use crate::http::metrics::Metrics;
use crate::store::CallRow;

/// Bytes of a request that make about one token.
const BYTES_PER_TOKEN: u64 = 4;

/// Tokens of a reply that is expected when the request names no bound.
const EXPECTED_OUTPUT: u64 = 1024;

/// Who calls, for the record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    pub(super) sandbox: SandboxId,
    pub(super) user: UserId,
    pub(super) command: Option<CommandId>,
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
    pub(super) price: Option<Price>,
    /// Bytes of the request.
    pub(super) request_bytes: u64,
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
        output: max_output.unwrap_or(EXPECTED_OUTPUT),
        cached: 0,
    };
    Amount {
        tokens: usage.input.saturating_add(usage.output),
        money: cost(usage, price),
    }
}

/// What tokens cost, in billionths of a US dollar.
fn cost(usage: Usage, price: Option<Price>) -> i64 {
    let Some(price) = price else { return 0 };
    let cached = usage.cached.min(usage.input);
    let part = |tokens: u64, per_million: i64| i128::from(tokens) * i128::from(per_million);
    let sum = part(usage.input - cached, price.input)
        + part(cached, price.cached_input)
        + part(usage.output, price.output);
    i64::try_from(sum / 1_000_000).unwrap_or(i64::MAX)
}

impl Bill {
    /// The call has ended.
    pub(super) fn settle(mut self, end: ReplyEnd) {
        self.close(end);
    }

    fn close(&mut self, mut end: ReplyEnd) {
        let Some(slot) = self.slot.take() else { return };
        // A connection that went with the caller's right did not leave by itself.
        if end.outcome == Outcome::ClientGone && self.right.is_cancelled() {
            end.outcome = Outcome::Cut;
        }
        let succeeded = self.status < 400;
        let (usage, estimated) = match end.usage {
            Some(usage) => (usage, false),
            // A refusal costs nothing; what was answered and not counted is estimated.
            None if !succeeded || !self.sent || self.free => (Usage::default(), false),
            None => (
                Usage {
                    input: self.request_bytes / BYTES_PER_TOKEN,
                    output: end.events,
                    cached: 0,
                },
                true,
            ),
        };
        let cost = cost(usage, self.price);
        let used = Amount {
            tokens: usage.input.saturating_add(usage.output),
            money: cost,
        };
        for admission in self.admissions.drain(..) {
            admission.settle(used);
        }
        let millis =
            |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let latency_ms = millis(self.began.elapsed());
        let first_byte_ms = end
            .first_byte
            .map(|at| millis(at.saturating_duration_since(self.began)));
        self.metrics.models().call(
            &self.provider,
            &self.model,
            (usage.input, usage.output, usage.cached),
            end.outcome.as_str(),
            cost,
        );
        if !self.sent {
            return;
        }
        tracing::info!(
            request_id = %self.who.request,
            sandbox_id = %self.who.sandbox,
            user_id = %self.who.user,
            command_id = self.who.command.map(|id| id.to_string()),
            provider = self.provider,
            model = self.model,
            status = self.status,
            latency_ms,
            first_byte_ms,
            input_tokens = usage.input,
            output_tokens = usage.output,
            cached_tokens = usage.cached,
            estimated,
            cost_nano_usd = cost,
            outcome = end.outcome.as_str(),
            "model call"
        );
        slot.record(CallRow {
            request_id: self.who.request,
            at: self.clock.now_ms(),
            sandbox_id: self.who.sandbox,
            user_id: self.who.user,
            provider: self.provider.clone(),
            model: self.model.clone(),
            status: self.status,
            outcome: end.outcome.as_str(),
            latency_ms,
            first_byte_ms,
            input_tokens: usage.input,
            output_tokens: usage.output,
            cached_tokens: usage.cached,
            estimated,
            cost,
            ok: succeeded && end.outcome == Outcome::Complete,
        });
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        self.close(ReplyEnd {
            outcome: Outcome::ClientGone,
            usage: None,
            events: 0,
            bytes: 0,
            first_byte: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICE: Price = Price {
        input: 2_500_000_000,
        output: 10_000_000_000,
        cached_input: 1_250_000_000,
    };

    #[test]
    fn tokens_cost_what_the_prices_say() {
        let usage = Usage {
            input: 1000,
            output: 100,
            cached: 400,
        };
        // 600 × 2.5 + 400 × 1.25 + 100 × 10 micro-dollars.
        assert_eq!(cost(usage, Some(PRICE)), 3_000_000);
        assert_eq!(cost(usage, None), 0);
        let odd = Usage {
            cached: 5000,
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
    fn what_is_expected_counts_the_request_and_the_bound_of_the_reply() {
        let amount = expected(4000, Some(500), Some(PRICE));
        assert_eq!((amount.tokens, amount.money), (1500, 7_500_000));
        assert_eq!(expected(0, None, None).tokens, EXPECTED_OUTPUT);
    }
}
