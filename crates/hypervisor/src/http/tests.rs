//! Whose host is it.

use axum::body::Body;
use http::Request;

use super::authority;

fn request(target: &str, hosts: &[&str]) -> Request<Body> {
    let mut builder = Request::builder().uri(target);
    for host in hosts {
        builder = builder.header("host", *host);
    }
    builder.body(Body::empty()).unwrap()
}

#[test]
fn target_and_host_have_to_agree() {
    assert_eq!(
        authority(&request("/x", &["Localhost:9090"])).unwrap(),
        "localhost:9090"
    );
    assert_eq!(
        authority(&request("http://a.localhost:1/x", &[])).unwrap(),
        "a.localhost:1"
    );
    assert_eq!(
        authority(&request("http://a.localhost:1/x", &["A.localhost:1"])).unwrap(),
        "a.localhost:1"
    );
    assert!(authority(&request("http://a.localhost:1/x", &["localhost:1"])).is_err());
    assert!(authority(&request("/x", &["a", "b"])).is_err());
    assert!(authority(&request("/x", &[])).is_err());
}
