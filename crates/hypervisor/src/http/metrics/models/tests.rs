use super::*;
use crate::http::metrics::Metrics;

fn ended<'a>(provider: &'a str, model: &'a str) -> Ended<'a> {
    Ended {
        provider,
        model,
        operation: "chat",
        request: RequestId::generate(),
        sandbox: SandboxId::generate(),
        user: UserId::generate(),
        status: 200,
        outcome: "complete",
        input: 12,
        output: 300,
        cached: 5,
        cost: 2_500_000,
        took: Duration::from_millis(1500),
        first_byte: Some(Duration::from_millis(200)),
        at: 1_800_000_000_000,
    }
}

#[test]
fn calls_stand_in_the_exposition_under_the_names_of_the_conventions() {
    let metrics = Metrics::new();
    let models = metrics.models();
    models.call(&ended("acme", "large"));
    models.call(&ended("acme", "large"));
    models.call(&Ended {
        status: 429,
        input: 0,
        output: 0,
        cached: 0,
        cost: 0,
        ..ended("acme", "large")
    });
    models.call(&Ended {
        outcome: "broken",
        ..ended("acme", "small \"quoted\"")
    });
    let text = metrics.text();
    let labels = "gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"acme\",gen_ai_request_model=\"large\"";
    for line in [
        "# TYPE gen_ai_client_operation_duration_seconds histogram".to_owned(),
        "# UNIT gen_ai_client_operation_duration_seconds seconds".to_owned(),
        "# TYPE gen_ai_client_token_usage histogram".to_owned(),
        "# TYPE gen_ai_server_time_to_first_token_seconds histogram".to_owned(),
        format!("gen_ai_client_operation_duration_seconds_sum{{{labels}}} 3.0"),
        format!("gen_ai_client_operation_duration_seconds_count{{{labels}}} 2"),
        format!("gen_ai_client_operation_duration_seconds_count{{{labels},error_type=\"429\"}} 1"),
        format!("gen_ai_client_operation_duration_seconds_bucket{{le=\"1.28\",{labels}}} 0"),
        format!("gen_ai_client_operation_duration_seconds_bucket{{le=\"2.56\",{labels}}} 2"),
        format!("gen_ai_client_operation_duration_seconds_bucket{{le=\"+Inf\",{labels}}} 2"),
        format!("gen_ai_client_token_usage_sum{{{labels},gen_ai_token_type=\"input\"}} 24.0"),
        format!("gen_ai_client_token_usage_count{{{labels},gen_ai_token_type=\"output\"}} 2"),
        format!("gen_ai_server_time_to_first_token_seconds_count{{{labels}}} 2"),
        "gen_ai_request_model=\"small \\\"quoted\\\"\",error_type=\"broken\"} 1".to_owned(),
        format!("choir_gen_ai_cost_usd_total{{{labels}}} 0.005"),
        format!("choir_gen_ai_cached_input_tokens_total{{{labels}}} 10.0"),
        "choir_otlp_lost_spans_total 0".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn a_provider_cannot_make_series_without_bound() {
    let models = ModelMetrics::default();
    for status in 400..600 {
        models.call(&Ended {
            status,
            ..ended("acme", "large")
        });
    }
    let [durations, ..] = models.histograms();
    assert_eq!(durations.points.len(), MAX_ERRORS + 1);
    let all: u64 = durations.points.iter().map(|p| p.snapshot.count()).sum();
    assert_eq!(all, 200, "none is lost");
    for number in 0..2 * MAX_SERIES {
        models.call(&ended("acme", &format!("model-{number}")));
    }
    assert_eq!(models.all().len(), MAX_SERIES + 1);
}

#[test]
fn operations_are_told_by_the_path() {
    for (path, expected) in [
        ("chat/completions", "chat"),
        ("/v1/messages?beta=true", "chat"),
        ("responses", "chat"),
        ("completions", "text_completion"),
        ("v1/messages/count_tokens", "count_tokens"),
        ("embeddings", "embeddings"),
        (
            "v1beta/models/some:streamGenerateContent",
            "generate_content",
        ),
        ("model/some%3A0/converse-stream", "chat"),
        ("files/secret-name", OTHER),
    ] {
        assert_eq!(operation(path), expected, "{path}");
    }
}

#[test]
fn a_full_queue_loses_calls_and_counts_them() {
    let models = ModelMetrics::default();
    let (sender, mut receiver) = mpsc::channel(1);
    models.tell(sender);
    models.call(&ended("acme", "large"));
    models.call(&ended("acme", "large"));
    assert_eq!(models.lost(), 1);
    let span = receiver.try_recv().unwrap();
    assert_eq!((span.input, span.output, span.cached), (12, 300, 5));
}
