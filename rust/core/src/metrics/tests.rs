//! The accounting as a whole: what handles write, what a scrape reads.

use std::time::Duration;

use super::*;
use crate::dialects::Dialect;
use crate::error::{Detail, Phase};
use crate::http::ResponseHead;
use crate::stream::{StreamConfig, StreamDecoder, UnaryAnswer};

const REPLICA: [(&str, &str); 4] =
    [("engine", "llamacpp"), ("engine_version", "b1"), ("pool_id", "p"), ("replica_id", "0")];
const POOL: [(&str, &str); 4] =
    [("engine", "llamacpp"), ("engine_version", "b1"), ("pool_id", "p"), ("priority", "batch")];

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

fn counted() -> (Metrics, ReplicaMetrics) {
    let metrics = Metrics::default();
    let replica = metrics.replica("llamacpp", "p", "0");
    replica.set_engine_version("b1", None);
    (metrics, replica)
}

fn decoder(task: &TaskMetrics) -> StreamDecoder {
    let mut config = StreamConfig::new("llamacpp");
    config.metrics = Some(task.clone());
    StreamDecoder::new(Dialect::new("llamacpp", []).unwrap(), config)
}

fn head(decoder: &mut StreamDecoder, status: u16, now: Instant) {
    let headers: [(&[u8], &[u8]); 1] = [(b"content-type", b"text/event-stream")];
    decoder.head(&ResponseHead { status, headers: &headers }, now, &mut Vec::new());
}

fn frame(content: &str, tokens: u64, rest: &str) -> Vec<u8> {
    format!("data: {{\"content\":\"{content}\",\"tokens_predicted\":{tokens}{rest}}}\n\n").into()
}

fn with<'l>(labels: &[(&'l str, &'l str)], more: &[(&'l str, &'l str)]) -> Vec<(&'l str, &'l str)> {
    [labels, more].concat()
}

fn count(metrics: &Metrics, family: Family, labels: &[(&str, &str)]) -> Option<u64> {
    match metrics.snapshot(at(0)).get(family, labels)? {
        Value::Counter(count) => Some(*count),
        other => panic!("{other:?}"),
    }
}

fn gauge(metrics: &Metrics, family: Family, labels: &[(&str, &str)]) -> Option<f64> {
    match metrics.snapshot(at(0)).get(family, labels)? {
        Value::Gauge(value) => Some(*value),
        other => panic!("{other:?}"),
    }
}

fn histogram(metrics: &Metrics, family: Family) -> HistogramValue {
    match metrics.snapshot(at(0)).get(family, &POOL) {
        Some(Value::Histogram(value)) => value.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stream_is_counted_once() {
    let (metrics, replica) = counted();
    let task = replica.task("batch", None);
    let mut stream = decoder(&task);
    let mut out = Vec::new();
    stream.dispatched(at(0));
    assert_eq!(gauge(&metrics, Family::TasksInFlight, &REPLICA), Some(1.0));
    head(&mut stream, 200, at(10));
    stream.feed(&frame("a", 1, ",\"stop\":false"), at(120), &mut out);
    stream.feed(&frame("b", 3, ",\"stop\":false"), at(140), &mut out);
    let last = frame("", 3, ",\"tokens_evaluated\":7,\"stop\":true,\"stop_type\":\"eos\"");
    stream.feed(&last, at(400), &mut out);
    stream.feed(&frame("late", 4, ",\"stop\":false"), at(401), &mut out);
    drop((stream, task));

    let of = |family| count(&metrics, family, &REPLICA);
    let outcome =
        |word| count(&metrics, Family::TasksFinished, &with(&REPLICA, &[("outcome", word)]));
    let started = with(&REPLICA, &[("priority", "batch")]);
    assert_eq!(count(&metrics, Family::TasksStarted, &started), Some(1));
    assert_eq!(of(Family::TokensIn), Some(7));
    assert_eq!(of(Family::TokensOut), Some(3));
    assert_eq!(of(Family::FramesAfterEnd), Some(1));
    assert_eq!((outcome("completed"), outcome("cancelled")), (Some(1), Some(0)));
    assert_eq!(gauge(&metrics, Family::TasksInFlight, &REPLICA), Some(0.0));
    let first = histogram(&metrics, Family::LatencyFirstToken);
    assert_eq!((first.sum_micros, first.counts[2]), (120_000, 1));
    assert_eq!(histogram(&metrics, Family::LatencyDecode).sum_micros, 280_000);
    // Two tokens came together, 20 ms after the first.
    let gaps = histogram(&metrics, Family::InterToken);
    assert_eq!((gaps.sum_micros, gaps.counts[3]), (20_000, 2));
}

#[test]
fn a_decoder_that_was_told_of_no_head_counts_by_what_it_is_fed() {
    let (metrics, replica) = counted();
    let mut stream = decoder(&replica.task("batch", None));
    stream.feed(&frame("", 0, ",\"stop\":true,\"stop_type\":\"eos\""), at(0), &mut Vec::new());
    drop(stream);
    let outcome = with(&REPLICA, &[("outcome", "completed")]);
    assert_eq!(count(&metrics, Family::TasksFinished, &outcome), Some(1));
}

#[test]
fn a_unary_answer_completes_its_task() {
    let (metrics, replica) = counted();
    let mut stream = decoder(&replica.task("batch", None));
    stream.dispatched(at(0));
    let answer = UnaryAnswer { tokens_in: Some(5), ..UnaryAnswer::default() };
    stream.complete(answer, at(10), &mut Vec::new());
    // A second one comes too late to count.
    let answer = UnaryAnswer { tokens_in: Some(7), ..UnaryAnswer::default() };
    stream.complete(answer, at(11), &mut Vec::new());
    drop(stream);
    let outcome = with(&REPLICA, &[("outcome", "completed")]);
    assert_eq!(count(&metrics, Family::TasksFinished, &outcome), Some(1));
    assert_eq!(count(&metrics, Family::TokensIn, &REPLICA), Some(5));
}

proptest::proptest! {
    #[test]
    fn however_the_bytes_come_the_sums_are_the_same(
        cuts in proptest::collection::vec(1_usize..200, 1..40),
        pause in 0_u64..400,
    ) {
        let (metrics, replica) = counted();
        let mut body: Vec<u8> = Vec::new();
        for number in 1..=20 {
            body.extend(frame("a", number, ",\"stop\":false"));
        }
        body.extend(frame("", 20, ",\"tokens_evaluated\":7,\"stop\":true,\"stop_type\":\"eos\""));
        let mut stream = decoder(&replica.task("batch", None));
        stream.dispatched(at(0));
        head(&mut stream, 200, at(1));
        let (mut rest, mut now) = (&body[..], 1);
        for cut in cuts.iter().cycle() {
            let (read, after) = rest.split_at(rest.len().min(*cut));
            now += pause;
            stream.feed(read, at(now), &mut Vec::new());
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        let of = |family| count(&metrics, family, &REPLICA);
        proptest::prop_assert_eq!(of(Family::TokensOut), Some(20));
        proptest::prop_assert_eq!(of(Family::TokensIn), Some(7));
        proptest::prop_assert_eq!(of(Family::DecodeBytes), Some(body.len() as u64));
        let gaps = histogram(&metrics, Family::InterToken);
        let first = histogram(&metrics, Family::LatencyFirstToken);
        let decode = histogram(&metrics, Family::LatencyDecode);
        proptest::prop_assert_eq!(first.counts.iter().sum::<u64>(), 1);
        proptest::prop_assert_eq!(decode.counts.iter().sum::<u64>(), 1);
        proptest::prop_assert!(gaps.counts.iter().sum::<u64>() <= 19);
        proptest::prop_assert!(gaps.sum_micros <= decode.sum_micros);
    }
}

#[test]
fn what_fails_before_the_answer_is_for_whoever_submits_to_tell() {
    let (metrics, replica) = counted();
    let task = replica.task("batch", None);
    let mut out = Vec::new();
    // Sent twice, refused twice.
    for _ in 0..2 {
        let mut stream = decoder(&task);
        stream.dispatched(at(0));
        head(&mut stream, 503, at(1));
        stream.feed(b"busy", at(1), &mut out);
        stream.finish(true, at(1), &mut out);
    }
    replica.retried("POOL_UNAVAILABLE");
    let errors = with(&REPLICA, &[("kind", "PoolUnavailable"), ("phase", "head")]);
    assert_eq!(count(&metrics, Family::TaskErrors, &errors), None);
    let Some(crate::TokenEvent::Error(error)) = out.pop() else { panic!() };
    task.refused(&error);
    task.refused(&error);
    assert_eq!(count(&metrics, Family::TaskErrors, &errors), Some(1));
    let rejected = [("engine", "llamacpp"), ("reason", error.code.as_str())];
    assert_eq!(count(&metrics, Family::TasksRejected, &rejected), Some(1));
    let retried = with(&REPLICA, &[("reason", "POOL_UNAVAILABLE")]);
    assert_eq!(count(&metrics, Family::TaskRetries, &retried), Some(1));
    let started = with(&REPLICA, &[("priority", "batch")]);
    assert_eq!(count(&metrics, Family::TasksStarted, &started), Some(1));
    assert_eq!(gauge(&metrics, Family::TasksInFlight, &REPLICA), Some(0.0));
}

#[test]
fn an_error_of_the_stream_is_counted_by_kind_and_phase() {
    let (metrics, replica) = counted();
    let mut stream = decoder(&replica.task("batch", None));
    stream.dispatched(at(0));
    head(&mut stream, 200, at(1));
    stream.feed(&frame("a", 1, ",\"stop\":false"), at(2), &mut Vec::new());
    stream.fail(Detail::Reset, Phase::Stream, None, "", at(3), &mut Vec::new());
    let errors = with(&REPLICA, &[("kind", "WorkerReset"), ("phase", "stream")]);
    assert_eq!(count(&metrics, Family::TaskErrors, &errors), Some(1));
    assert_eq!(histogram(&metrics, Family::LatencyDecode).sum_micros, 0);
}

#[test]
fn a_cancel_has_a_reason() {
    let (metrics, replica) = counted();
    for given in [None, Some("drain")] {
        let task = replica.task("batch", None);
        let mut stream = decoder(&task);
        stream.dispatched(at(0));
        head(&mut stream, 200, at(1));
        if let Some(reason) = given {
            task.give_reason(reason);
        }
        stream.cancel(at(2), &mut Vec::new());
        task.cancelled("requested");
    }
    let mut dropped = decoder(&replica.task("batch", None));
    dropped.dispatched(at(0));
    head(&mut dropped, 200, at(1));
    drop(dropped);
    for reason in ["requested", "drain", "dropped"] {
        let labels = with(&REPLICA, &[("reason", reason)]);
        assert_eq!(count(&metrics, Family::TasksCanceled, &labels), Some(1), "{reason}");
    }
    assert_eq!(gauge(&metrics, Family::TasksInFlight, &REPLICA), Some(0.0));
}

#[test]
fn series_of_a_version_no_longer_served_go_after_their_last_stream() {
    let (metrics, replica) = counted();
    let task = replica.task("batch", None);
    let mut stream = decoder(&task);
    drop(task);
    stream.dispatched(at(0));
    replica.set_breaker(BreakerState::Open);
    let before = metrics.series();
    replica.set_engine_version("b2", None);
    let new = [REPLICA[0], ("engine_version", "b2"), REPLICA[2], REPLICA[3]];
    // The gauge has moved, the counters of the stream have stayed.
    assert_eq!(gauge(&metrics, Family::BreakerState, &new), Some(1.0));
    assert_eq!(gauge(&metrics, Family::BreakerState, &REPLICA), None);
    assert_eq!(count(&metrics, Family::TokensOut, &REPLICA), Some(0));
    head(&mut stream, 200, at(1));
    stream.cancel(at(2), &mut Vec::new());
    drop(stream);
    let canceled = with(&REPLICA, &[("reason", "requested")]);
    assert_eq!(count(&metrics, Family::TasksCanceled, &canceled), Some(1));
    assert_eq!(count(&metrics, Family::TasksCanceled, &canceled), None, "seen once more");
    assert_eq!(count(&metrics, Family::TokensOut, &REPLICA), None);
    assert!(metrics.series() < before);
}

#[test]
fn what_is_never_known_is_absent() {
    let (metrics, replica) = counted();
    let all = [POOL[0], POOL[1], POOL[2], ("priority", "all")];
    assert_eq!(gauge(&metrics, Family::QueueDepth, &all), None);
    replica.set_gauge(EngineGauge::QueueDepth, None, Some(2.0), "metrics", at(0));
    let other = metrics.replica("llamacpp", "p", "1");
    other.set_engine_version("b1", None);
    other.set_gauge(EngineGauge::QueueDepth, None, Some(3.0), "metrics", at(0));
    assert_eq!(gauge(&metrics, Family::QueueDepth, &all), Some(5.0), "of the whole pool");
    other.set_gauge(EngineGauge::QueueDepth, None, None, "metrics", at(0));
    assert_eq!(gauge(&metrics, Family::QueueDepth, &all), Some(2.0));
    drop(replica);
    assert_eq!(gauge(&metrics, Family::QueueDepth, &all), None);
}

#[test]
fn a_gauge_has_a_source_and_an_age() {
    let (metrics, replica) = counted();
    replica.set_gauge(EngineGauge::Slots, None, Some(4.0), "props", at(0));
    replica.set_gauge(EngineGauge::Slots, None, Some(4.0), "slots", at(1_000));
    let snapshot = metrics.snapshot(at(3_500));
    let age = |source| {
        snapshot.get(Family::GaugeAge, &with(&REPLICA, &[("gauge", "slots"), ("source", source)]))
    };
    assert_eq!(age("slots"), Some(&Value::Gauge(2.5)));
    assert_eq!(age("props"), None);
    let [reading] = &replica.gauges()[..] else { panic!() };
    assert_eq!((reading.gauge, reading.value), (EngineGauge::Slots, Some(4.0)));
    assert_eq!((&*reading.source, reading.at), ("slots", at(1_000)));
}

#[test]
fn hostile_ids_leave_memory_flat() {
    let metrics = Metrics::new(MetricsConfig { max_series: 2_000, ..MetricsConfig::default() });
    let mut sizes = Vec::new();
    for id in 0..2_000 {
        let name = format!("{id}-\"\\\n{}", "é".repeat(100));
        let replica = metrics.replica("llamacpp", &name, &name);
        replica.set_engine_version(&name, None);
        replica.task(&name, None).cancelled(&name);
        replica.set_gauge(EngineGauge::Slots, None, Some(1.0), &name, at(0));
        if id >= 500 && id % 500 == 0 {
            sizes.push(metrics.series());
        }
    }
    assert!(sizes.is_sorted_by(|one, other| one == other), "{sizes:?}");
    // What stands for the others is not refused.
    assert!(sizes[0] <= 2_000 + 1_000, "{sizes:?}");
    let overflows = count(&metrics, Family::LabelOverflow, &[("label", "series")]);
    assert!(overflows > Some(1_000), "{overflows:?}");
}

#[test]
fn past_the_bound_on_all_series_the_rest_is_counted_together() {
    let config = MetricsConfig { max_series: 120, ..MetricsConfig::default() };
    let metrics = Metrics::new(config);
    for id in 0..50 {
        let replica = metrics.replica("llamacpp", "p", &id.to_string());
        replica.task("batch", None).started();
    }
    assert!(metrics.series() < 240, "{}", metrics.series());
    let snapshot = metrics.snapshot(at(0));
    let started = snapshot.families().iter().find(|it| it.family == Family::TasksStarted);
    let total: u64 = started
        .unwrap()
        .samples
        .iter()
        .map(|sample| match sample.value {
            Value::Counter(count) => count,
            _ => 0,
        })
        .sum();
    assert_eq!(total, 50, "nothing is lost");
    assert!(count(&metrics, Family::LabelOverflow, &[("label", "series")]) > Some(0));
}

#[test]
fn one_switch_adds_the_base_unit() {
    let config = MetricsConfig { seconds: true, milliseconds: false, ..MetricsConfig::default() };
    let metrics = Metrics::new(config);
    let replica = metrics.replica("llamacpp", "p", "0");
    let mut stream = decoder(&replica.task(
        "batch",
        TraceId::from_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ));
    stream.dispatched(at(0));
    stream.feed(&frame("a", 1, ",\"stop\":false"), at(60), &mut Vec::new());
    let snapshot = metrics.snapshot(at(0));
    let text = snapshot.render(Format::OpenMetrics);
    assert!(!text.contains("_ms"));
    let line = "latency_first_token_seconds_bucket{engine=\"llamacpp\",engine_version=\"unknown\",\
        pool_id=\"p\",priority=\"batch\",le=\"0.1\"} 1 \
        # {trace_id=\"4bf92f3577b34da6a3ce929d0e0e4736\"} 0.06\n";
    assert!(text.contains(line), "{text}");
    assert!(text.ends_with("# EOF\n"));
    let text = snapshot.render(Format::Prometheus);
    assert!(!text.contains("trace_id") && !text.contains("EOF"));
}

#[test]
fn the_orchestrator_asks_for_its_own() {
    let metrics = Metrics::default();
    let text = |metrics: &Metrics| metrics.snapshot(at(0)).render(Format::Prometheus);
    assert!(!text(&metrics).contains("model_state"));
    let labels = [(Label::State, "ready"), (Label::ModelId, "m")];
    let series = metrics.orchestrator(Family::ModelState, &labels).unwrap();
    series.set(Some(1.0));
    assert!(text(&metrics).contains("model_state{model_id=\"m\",state=\"ready\"} 1.0\n"));
    drop(series);
    assert!(!text(&metrics).contains("model_state{"));
    let error = metrics.orchestrator(Family::ModelState, &[(Label::State, "x")]).unwrap_err();
    assert_eq!(error.to_string(), "the labels of model_state are model_id, state");
    assert!(metrics.orchestrator(Family::TokensIn, &[]).is_err());
}

#[test]
fn the_tensorrt_llm_behind_triton_is_a_label() {
    let metrics = Metrics::default();
    let replica = metrics.replica("triton", "p", "0");
    replica.set_engine_version("2.70.0", Some("1.2.0"));
    let text = metrics.snapshot(at(0)).render(Format::Prometheus);
    let line = "tokens_in_total{engine=\"triton\",engine_version=\"2.70.0\",\
        trtllm_version=\"1.2.0\",pool_id=\"p\",replica_id=\"0\"} 0\n";
    assert!(text.contains(line), "{text}");
}

#[test]
fn confirmed_cancels_are_timed() {
    let (metrics, replica) = counted();
    let task = replica.task("batch", None);
    task.stopped(Some(true), Duration::from_millis(7));
    task.stopped(None, Duration::from_millis(900));
    let cancels =
        |word| count(&metrics, Family::TaskCancels, &with(&REPLICA, &[("confirmed", word)]));
    assert_eq!((cancels("yes"), cancels("unknown"), cancels("no")), (Some(1), Some(1), None));
    let Some(Value::Histogram(value)) =
        metrics.snapshot(at(0)).get(Family::CancelConfirmation, &REPLICA).cloned()
    else {
        panic!()
    };
    assert_eq!(value.sum_micros, 7_000);
}

#[test]
fn a_metrics_object_is_freed_with_its_last_handle() {
    let (metrics, replica) = counted();
    let weak = Arc::downgrade(&metrics.0);
    drop(replica.task("batch", None));
    drop((metrics, replica));
    assert_eq!(weak.strong_count(), 0);
}

#[test]
fn handles_go_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<(Metrics, ReplicaMetrics, TaskMetrics, OwnSeries, Snapshot)>();
}
