//! llama.cpp's server as a `WorkerAdapter`: what is asked of it, and what its errors mean.
//!
//! Completions alone, without extensions and sampler profiles; what it cannot do it refuses.

use std::collections::hash_map::RandomState;
use std::error::Error;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use worker_adapters_core::adapter::{
    BoxFuture, CancelReceipt, Timeouts, TokenStream, WorkerAdapter, WorkerHealth, WorkerProps,
};
use worker_adapters_core::egress::{EgressPolicy, Scheme};
use worker_adapters_core::error::{Detail, Phase, Processed, WorkerError};
use worker_adapters_core::redact::Redactor;
use worker_adapters_core::rules::{Rule, RuleTable};
use worker_adapters_core::task::{Determinism, EngineName, KvHint, SubmitContext, TaskRequest};
use worker_adapters_core::task::{Uuid, Workload};
use worker_adapters_core::{Dialect, StreamConfig, StreamDecoder};
use worker_adapters_net::origin::Origin;
use worker_adapters_net::tls::{TlsOptions, client_config};
use worker_adapters_net::{Bounds, Call, Reactor, Request, Target, TargetConfig, Tasks};

const ENGINE: &str = "llamacpp";

/// Seeds are 32 bits wide, and the last one asks for a random seed that is never reported.
const MAX_SEED: i64 = 0xffff_fffe;

/// One llama.cpp server.
pub(crate) struct LlamaCpp {
    reactor: Reactor,
    target: Target,
    prefix: String,
    tasks: Tasks,
    rules: Arc<RuleTable>,
    timeouts: Timeouts,
    /// The build, once the engine has said it.
    version: Mutex<Option<Arc<str>>>,
}

impl LlamaCpp {
    /// The server at `http[s]://host[:port][/prefix]`, and nowhere else.
    pub(crate) fn new(reactor: &Reactor, base_url: &str) -> Result<Self, Box<dyn Error>> {
        let policy = EgressPolicy::for_base_url(base_url)?;
        let destination = policy.check_url(base_url)?;
        let (origin, prefix) = Origin::parse(base_url)?;
        let is_https = origin.scheme() == Scheme::Https;
        let mut config = TargetConfig::new(origin);
        config.tls = is_https.then(|| client_config(&TlsOptions::default())).transpose()?;
        config.vet = Some(Arc::new(move |peer| {
            let verdict = policy.check_address(&destination, peer.ip());
            verdict.map(drop).map_err(|denied| denied.to_string())
        }));
        // The server pings every 30 s while it reads a prompt: 75 s without a byte is a dead one.
        let idle = Some(Duration::from_secs(75));
        Ok(Self {
            reactor: reactor.clone(),
            target: reactor.target(config),
            prefix,
            tasks: Tasks::new(ENGINE),
            rules: Arc::new(rules()),
            timeouts: Timeouts { idle, ..Timeouts::default() },
            version: Mutex::default(),
        })
    }

    async fn get(&self, path: &str, timeouts: Option<&Timeouts>) -> Result<Value, WorkerError> {
        let timeouts = timeouts.unwrap_or(&self.timeouts);
        let mut call = Call::new(ENGINE);
        call.rules = Arc::clone(&self.rules);
        call.timeout = timeouts.unary;
        call.bounds = bounds(timeouts);
        let path = format!("{}{path}", self.prefix);
        let request = Request { method: "GET", path: &path, headers: &[], body: None };
        let answer = self.target.ask(&request, call).await?;
        serde_json::from_slice(&answer).map_err(|_| nonsense())
    }

    /// How the answer to a task is read.
    fn decoder(
        &self,
        task: &TaskRequest,
        context: &SubmitContext,
        timeouts: &Timeouts,
        seed: i64,
        correlation_id: &str,
    ) -> Result<StreamDecoder, WorkerError> {
        let dialect = Dialect::new(ENGINE, [])
            .map_err(|_| WorkerError::new(ENGINE, Detail::Internal, Phase::Validate))?;
        let mut config = StreamConfig::new(ENGINE);
        let budget = Duration::from_millis(task.deadline_ms.unsigned_abs());
        config.clocks = timeouts.stream_clocks(Some(self.reactor.now().saturating_add(budget)));
        config.rules = Arc::clone(&self.rules);
        config.redactor = Redactor::default().with_private_texts(task.prompt.as_deref());
        config.started.engine_version = self.known_version();
        config.started.seed = Some(seed);
        config.started.correlation_id = Some(correlation_id.into());
        config.started.queue_position = context.queue_position.map(i64::from);
        config.started.predicted_start_ms = context.predicted_start_ms;
        Ok(StreamDecoder::new(dialect, config))
    }

    fn known_version(&self) -> Option<Arc<str>> {
        self.version.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl WorkerAdapter for LlamaCpp {
    fn health<'a>(&'a self, timeouts: Option<&'a Timeouts>) -> BoxFuture<'a, WorkerHealth> {
        Box::pin(async move {
            match self.get("/health", timeouts).await {
                Ok(_) => WorkerHealth::ready(),
                Err(error) if error.status.is_some() => {
                    WorkerHealth::unready(error.detail.as_str())
                }
                Err(error) => WorkerHealth::unreachable(error.detail.as_str()),
            }
        })
    }

    fn props<'a>(
        &'a self,
        timeouts: Option<&'a Timeouts>,
    ) -> BoxFuture<'a, Result<WorkerProps, WorkerError>> {
        Box::pin(async move {
            let slots = self.get("/slots", timeouts).await?;
            let slots = slots.as_array().ok_or_else(nonsense)?;
            let is_free = |slot: &&Value| slot.get("is_processing") == Some(&Value::Bool(false));
            Ok(WorkerProps {
                slots_total: u32::try_from(slots.len()).ok(),
                slots_free: u32::try_from(slots.iter().filter(is_free).count()).ok(),
                source: Some("slots".to_owned()),
            })
        })
    }

    fn submit<'a>(
        &'a self,
        task: &'a TaskRequest,
        context: &'a SubmitContext,
        timeouts: Option<&'a Timeouts>,
    ) -> BoxFuture<'a, Result<TokenStream, WorkerError>> {
        Box::pin(async move {
            check(task)?;
            let timeouts = timeouts.unwrap_or(&self.timeouts);
            let seed = task.seed.unwrap_or_else(random_seed);
            let correlation_id =
                context.correlation_id.as_deref().map_or_else(random_id, str::to_owned);
            let decoder = self.decoder(task, context, timeouts, seed, &correlation_id)?;
            let body = serde_json::to_vec(&Completion::new(task, seed))
                .map_err(|_| WorkerError::new(ENGINE, Detail::Internal, Phase::Validate))?;
            let mut headers: Vec<(&[u8], &[u8])> = vec![
                (b"content-type", b"application/json"),
                (b"accept", b"text/event-stream"),
                // It closes after the last chunk though its headers say otherwise: the next request
                // on the same connection would be lost.
                (b"connection", b"close"),
                (b"x-correlation-id", correlation_id.as_bytes()),
            ];
            if let Some(traceparent) = &context.traceparent {
                headers.push((b"traceparent", traceparent.as_bytes()));
                if let Some(tracestate) = &context.tracestate {
                    headers.push((b"tracestate", tracestate.as_bytes()));
                }
            }
            let path = format!("{}/completion", self.prefix);
            let request =
                Request { method: "POST", path: &path, headers: &headers, body: Some(&body) };
            let sink = Box::new(decoder);
            self.tasks.submit(task.task_id, &self.target, &request, sink, bounds(timeouts)).await
        })
    }

    fn cancel(&self, task_id: Uuid) -> BoxFuture<'_, CancelReceipt> {
        // The server has no route for it: closing the connection is what frees the slot.
        let receipt = self.tasks.cancel(task_id);
        Box::pin(async { receipt })
    }

    fn engine_version<'a>(
        &'a self,
        timeouts: Option<&'a Timeouts>,
    ) -> BoxFuture<'a, Result<String, WorkerError>> {
        Box::pin(async move {
            let props = self.get("/props", timeouts).await?;
            let build = props.get("build_info").and_then(Value::as_str).ok_or_else(nonsense)?;
            *self.version.lock().unwrap_or_else(PoisonError::into_inner) = Some(build.into());
            Ok(build.to_owned())
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.tasks.close();
        Box::pin(async {})
    }
}

/// What the server is asked; what is None it decides itself.
#[derive(Serialize)]
struct Completion<'t> {
    prompt: Option<&'t str>,
    n_predict: u32,
    seed: i64,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_prompt: Option<bool>,
}

impl<'t> Completion<'t> {
    fn new(task: &'t TaskRequest, seed: i64) -> Self {
        let is_strict = task.determinism == Some(Determinism::Strict);
        let reuse = task.kv_hint.map(|hint| hint == KvHint::Reuse);
        Self {
            prompt: task.prompt.as_deref(),
            n_predict: task.max_tokens,
            seed,
            stream: true,
            temperature: is_strict.then_some(0.0),
            // What a cached prefix computed in another batch shape differs in its last bits.
            cache_prompt: if is_strict { Some(false) } else { reuse },
        }
    }
}

/// Refuses what needs no engine to be refused.
fn check(task: &TaskRequest) -> Result<(), WorkerError> {
    let refuse = |detail, why: &str| {
        Err(WorkerError::new(ENGINE, detail, Phase::Validate)
            .with_message(why, &Redactor::default()))
    };
    if task.engine != EngineName::LLAMACPP {
        return refuse(Detail::InvalidRequest, "the task is for another engine");
    }
    if task.workload != Workload::Completion {
        return refuse(Detail::Unsupported, "only completions are offered here");
    }
    if task.extensions.is_some() {
        return refuse(Detail::Unsupported, "no extension is offered here");
    }
    if task.sampler_profile_version.is_some() {
        return refuse(Detail::InvalidRequest, "no sampler profile has this version");
    }
    if task.seed.is_some_and(|seed| !(0..=MAX_SEED).contains(&seed)) {
        return refuse(Detail::InvalidRequest, "seed must be from 0 to 4294967294");
    }
    if task.deadline_ms <= 0 {
        return refuse(Detail::Deadline, "the deadline had passed at submission");
    }
    Ok(())
}

/// What the server's errors mean; the first row that matches decides.
fn rules() -> RuleTable {
    let row = |r#type: &str, message: Option<&str>, detail| {
        let mut rule = Rule::new(detail);
        rule.r#type = Some(r#type.to_owned());
        rule.message = message.map(str::to_owned);
        rule
    };
    let unprocessed = |mut rule: Rule| {
        rule.processed = Some(Processed::No);
        rule
    };
    RuleTable::new(vec![
        // Two things share one status and one type; only the first goes with a free engine.
        unprocessed(row("unavailable_error", Some("no slot available"), Detail::QueueFull)),
        unprocessed(row("unavailable_error", None, Detail::Loading)),
        row("exceed_context_size_error", None, Detail::ContextOverflow),
        row("authentication_error", None, Detail::Unauthorized),
        row("permission_error", None, Detail::Forbidden),
        row("not_found_error", None, Detail::NotFound),
        row("not_supported_error", None, Detail::Unsupported),
        row("invalid_request_error", None, Detail::InvalidRequest),
        // Faults of the request that the server reports as its own.
        row("server_error", Some("is too large to process"), Detail::ContextOverflow),
        row("server_error", Some("[json.exception."), Detail::InvalidRequest),
        row("server_error", None, Detail::EngineError),
    ])
}

fn bounds(timeouts: &Timeouts) -> Bounds {
    Bounds { connect: timeouts.connect, tls: timeouts.tls }
}

/// The error for an answer that is not what it should be.
fn nonsense() -> WorkerError {
    WorkerError::new(ENGINE, Detail::BadJson, Phase::Head)
}

fn random() -> u64 {
    // Keys come from the operating system, once a thread, and differ from one state to the next.
    RandomState::new().build_hasher().finish()
}

fn random_seed() -> i64 {
    // Below 2⁶³, so it stays what it is.
    i64::try_from(random() >> 1).unwrap_or_default() % (MAX_SEED + 1)
}

/// A UUID of version 4.
fn random_id() -> String {
    let bits = u128::from(random()) << 64 | u128::from(random());
    let version_4 = bits & !(0xf << 76) | 0x4 << 76;
    Uuid::from_u128(version_4 & !(0x3 << 62) | 0x2 << 62).to_string()
}
