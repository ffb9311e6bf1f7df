use super::*;

fn judged(kind: ProviderKind, status: u16, answer: &str) -> String {
    let status = StatusCode::from_u16(status).unwrap();
    let (ok, message, hint) = verdict(kind, status, answer.as_bytes());
    assert_eq!(ok, hint.is_none(), "{message}");
    message
}

#[test]
fn each_dialects_refusals_are_said_in_plain_words() {
    use ProviderKind::{Anthropic, Bedrock, Gemini, OpenAi};
    for (kind, status, answer, expected) in [
        (
            OpenAi,
            401,
            r#"{"error":{"message":"Incorrect API key provided: sk-abc","type":"invalid_request_error","code":"invalid_api_key"}}"#,
            "it refuses the key (status 401): Incorrect",
        ),
        (
            Anthropic,
            401,
            r#"{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}"#,
            "it refuses the key (status 401): invalid x-api-key",
        ),
        (
            Gemini,
            400,
            r#"{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT","details":[{"reason":"API_KEY_INVALID"}]}}"#,
            "it refuses the key (status 400): API key",
        ),
        (
            Bedrock,
            403,
            r#"{"message":"Authentication failed: Please make sure your API Key is valid."}"#,
            "it refuses the key (status 403)",
        ),
        (
            Bedrock,
            403,
            r#"{"Message":"You don't have access to the model with the specified model ID."}"#,
            "the key may not do this",
        ),
        (
            OpenAi,
            404,
            r#"{"error":{"message":"The model `x` does not exist","code":"model_not_found"}}"#,
            "it does not know the model",
        ),
        (
            Anthropic,
            404,
            r#"{"type":"error","error":{"type":"not_found_error","message":"model: x"}}"#,
            "it does not know the model (status 404): model: x",
        ),
        (
            Gemini,
            404,
            r#"{"error":{"code":404,"message":"models/x is not found for API version v1beta"}}"#,
            "it does not know the model",
        ),
        (
            Bedrock,
            400,
            r#"{"message":"The provided model identifier is invalid."}"#,
            "it does not know the model (status 400)",
        ),
        (
            OpenAi,
            404,
            "<html><body>Not Found</body></html>",
            "nothing of an API is at this base URL (status 404)",
        ),
        (
            OpenAi,
            403,
            r#"{"error":{"code":"unsupported_country_region_territory","message":"Country not supported"}}"#,
            "it does not serve this region",
        ),
        (
            Bedrock,
            403,
            r#"{"message":"not authorized to perform InvokeModel on arn:aws:bedrock:eu region"}"#,
            "the key may not do this",
        ),
        (
            Gemini,
            400,
            r#"{"error":{"message":"User location is not supported for the API use."}}"#,
            "it does not serve this region",
        ),
        (
            Bedrock,
            400,
            r#"{"message":"Invocation of model ID x with on-demand throughput isn’t supported."}"#,
            "it does not serve this region, or not this model in it",
        ),
        (
            OpenAi,
            400,
            r#"{"error":{"message":"messages is too short"}}"#,
            "it does not understand the request",
        ),
        (
            OpenAi,
            429,
            r#"{"error":{"message":"You exceeded your current quota"}}"#,
            "it limits this account",
        ),
        (
            OpenAi,
            503,
            "<html>",
            "it has troubles of its own (status 503)",
        ),
        (
            OpenAi,
            200,
            "<html>Welcome</html>",
            "something answers there (status 200), but not as the API of openai does",
        ),
        (
            OpenAi,
            200,
            r#"{"status":"ok"}"#,
            "not as the API of openai does",
        ),
        (
            Anthropic,
            200,
            r#"{"choices":[]}"#,
            "not as the API of anthropic does",
        ),
        (OpenAi, 200, r#"{"choices":[]}"#, "it answers"),
        (Anthropic, 200, r#"{"content":[]}"#, "it answers"),
        (Gemini, 200, r#"{"candidates":[]}"#, "it answers"),
        (Bedrock, 200, r#"{"output":{}}"#, "it answers"),
    ] {
        let message = judged(kind, status, answer);
        assert!(
            message.starts_with(expected) || message.ends_with(expected),
            "{message} is not {expected}"
        );
    }
}

#[test]
fn a_web_page_is_not_repeated_and_a_long_sentence_is_cut() {
    let page = judged(
        ProviderKind::OpenAi,
        502,
        "<html><script>alert(1)</script></html>",
    );
    assert!(!page.contains("script"), "{page}");
    let long = format!(r#"{{"error":{{"message":"{}"}}}}"#, "x".repeat(5000));
    assert!(judged(ProviderKind::OpenAi, 400, &long).len() < 400);
}
