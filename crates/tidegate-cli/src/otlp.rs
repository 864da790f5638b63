//! Traces, sent to an OpenTelemetry collector: OTLP over HTTP, as protobuf, if `otlp.endpoint` says where to.
//!
//! What spans there are is said in `tidegate::trace`; here they become spans of OpenTelemetry, with `tracing-opentelemetry`,
//! and leave. They wait in a queue of bounded length and are sent from a thread of their own: a collector that is slow or
//! away costs no message anything, only spans, which are counted. Sending is ours and not that of the exporter's crate: its
//! queue tells nobody what it drops, its client would be a second one, and it reads the environment by itself.

mod exporter;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SdkTracerProvider, ShouldSample as _};
use tidegate::trace::{Exported, Headers, TARGET, Tracer, install};
use tracing::Span;
use tracing::level_filters::LevelFilter;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::{Layer, Registry};

use self::exporter::{Collector, Counts, Exporter};
use crate::exit::Problem;
use crate::settings::{Settings, TRACES, collector, headers};

/// Takes the spans of traces, and nothing else.
pub(crate) type Traces = Box<dyn Layer<Registry> + Send + Sync>;

/// What sends, for the end of the process to wait for.
static EXPORTER: OnceLock<Exporter> = OnceLock::new();

/// Begins to make and send traces, if the settings say where to. Once for a process.
///
/// # Errors
/// Settings that are none; a certificate that could never be checked.
pub(crate) fn begin(settings: &Settings) -> Result<Option<Traces>, Problem> {
    let Some(endpoint) = settings.text("otlp.endpoint") else { return Ok(None) };
    let wrong = |key: &str, why: String| Problem::usage(format!("{key} cannot be used: {why}"));
    let url = collector(endpoint).map_err(|why| wrong("otlp.endpoint", why))?;
    let resource = resource(settings.text("otlp.service").unwrap_or_default());
    let timeout = settings.span("otlp.timeout").max(Duration::from_millis(1));
    let collector = Collector {
        transport: tidegate_remote::connections(&url, timeout)?,
        address: url.at(TRACES).map_err(|error| wrong("otlp.endpoint", error.to_string()))?,
        headers: headers(settings.text("otlp.headers").unwrap_or_default())
            .map_err(|why| wrong("otlp.headers", why))?,
        resource: (&resource).into(),
    };
    let counts = Arc::new(Counts::default());
    let (queue, exporter) = exporter::start(collector, settings.count("otlp.queue"), timeout, Arc::clone(&counts))?;
    let sampler = Sampler::TraceIdRatioBased(settings.share("otlp.ratio"));
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(sampler.clone())))
        .with_resource(resource)
        .with_span_processor(queue)
        .build();
    let layer = tracing_opentelemetry::layer::<Registry>()
        .with_tracer(provider.tracer("tidegate"))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_level(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(|span| span.target() == TARGET).with_max_level_hint(LevelFilter::INFO));
    let joint = Joint { counts, sampler, w3c: TraceContextPropagator::new() };
    if EXPORTER.set(exporter).is_err() || !install(Arc::new(joint)) {
        return Err(Problem::usage("traces were begun before in this process"));
    }
    Ok(Some(Box::new(layer)))
}

/// Waits until the last spans are sent, for as long as a collector may take to answer.
pub(crate) fn end() {
    if let Some(exporter) = EXPORTER.get() {
        exporter.end();
    }
}

/// Nobody waits for the last spans.
pub(crate) fn give_up() {
    if let Some(exporter) = EXPORTER.get() {
        exporter.give_up();
    }
}

fn resource(service: &str) -> Resource {
    // What `OTEL_RESOURCE_ATTRIBUTES` says is part of it.
    Resource::builder()
        .with_service_name(service.to_owned())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("process.pid", i64::from(std::process::id())))
        .build()
}

/// How spans of `tracing` and traces hang together, by the standard of the W3C.
#[derive(Debug)]
struct Joint {
    counts: Arc<Counts>,
    sampler: Sampler,
    w3c: TraceContextPropagator,
}

impl Joint {
    fn headers(&self, context: &Context) -> Headers {
        let mut injected = Injected(BTreeMap::new());
        self.w3c.inject_context(context, &mut injected);
        injected.0
    }
}

impl Tracer for Joint {
    fn continue_from(&self, span: &Span, headers: &Headers) {
        let context = self.w3c.extract_with_context(&Context::new(), &Extracted(headers));
        if context.span().span_context().is_valid() {
            // Refused of a span that is nowhere: then there is nothing to continue.
            drop(span.set_parent(context));
        }
    }

    fn adopt(&self, span: &Span, trace: [u8; 16]) {
        let id = TraceId::from_bytes(trace);
        let [a, b, c, d, e, f, g, h, ..] = trace;
        let first = SpanId::from_bytes([a, b, c, d, e, f, g, h]);
        // Every process has to say the same of it.
        let sampled = self.sampler.should_sample(None, id, "", &SpanKind::Consumer, &[], &[]).decision;
        let flags = match sampled {
            SamplingDecision::RecordAndSample => TraceFlags::SAMPLED,
            SamplingDecision::RecordOnly | SamplingDecision::Drop => TraceFlags::default(),
        };
        let begun = SpanContext::new(id, first, flags, true, TraceState::default());
        // Refused of a span that is nowhere.
        drop(span.set_parent(Context::new().with_remote_span_context(begun)));
    }

    fn headers_of(&self, span: &Span) -> Headers {
        self.headers(&span.context())
    }

    fn current(&self) -> Headers {
        self.headers(&Context::current())
    }

    fn exported(&self) -> Exported {
        self.counts.exported()
    }
}

struct Injected(Headers);

impl Injector for Injected {
    fn set(&mut self, name: &str, value: String) {
        // A trace without a state has no header for it.
        if !value.is_empty() {
            self.0.insert(name.to_owned(), value);
        }
    }
}

struct Extracted<'a>(&'a Headers);

impl Extractor for Extracted<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}
