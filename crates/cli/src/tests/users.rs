use insta::assert_snapshot;
use serde_json::json;

use super::Person;
use super::server::Plane;

#[tokio::test]
async fn accounts_are_listed_disabled_and_enabled() {
    let plane = Plane::start().await;
    let mut person = Person::signed_in(&plane).await;
    let bob = json!({ "name": "bob", "is_admin": false, "created_at": "2027-01-15T05:00:00Z" });
    let mut disabled = bob.clone();
    disabled["disabled"] =
        json!({ "at": "2027-02-01T05:00:00Z", "note": "laptop\u{1b}[2J stolen" });
    plane.answer(
        "GET /admin/users",
        json!({ "users": [
            { "name": "alice", "is_admin": true, "created_at": "2027-01-14T05:00:00Z" }, disabled,
        ]}),
    );
    assert_snapshot!(person.run(&plane, "user list").await.show(&plane), @r#"
    exit code 0
    --- stdout
    NAME   RIGHTS  SINCE                 STATE
    alice  admin   2027-01-14T05:00:00Z  enabled
    bob    -       2027-01-15T05:00:00Z  disabled 2027-02-01T05:00:00Z: laptop�[2J stolen
    --- stderr
    "#);
    plane.answer("POST /admin/users/bob/disable", disabled);
    let ended = person.run(&plane, "user disable bob --note stolen").await;
    assert_snapshot!(ended.show(&plane), @r#"
    exit code 0
    --- stdout
    bob is disabled: signed out everywhere, API tokens and open invitations revoked, both
    sandboxes stopped. Files and passkeys stay. To undo: choir user enable bob
    --- stderr
    "#);
    let wish = json!({ "note": "stolen" });
    assert!(plane.asked().iter().any(|asked| asked.body == wish));
    plane.answer("POST /admin/users/bob/enable", bob);
    assert_snapshot!(person.run(&plane, "user enable bob --json").await.show(&plane), @r#"
    exit code 0
    --- stdout
    {
      "name": "bob",
      "is_admin": false,
      "created_at": "2027-01-15T05:00:00Z"
    }
    --- stderr
    "#);
    assert_snapshot!(person.run(&plane, "user disable ..%2fadmin").await.show(&plane), @r#"
    exit code 2
    --- stdout
    --- stderr
    error: invalid value '..%2fadmin' for '<NAME>': a user name has only the letters a-z, the digits 0-9 and hyphens

    For more information, try '--help'.
    "#);
}
