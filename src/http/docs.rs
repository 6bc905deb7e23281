//! The description of the HTTP interface, generated from the handlers: `/openapi.json` for programs, `/docs` for people.
//!
//! The page is RapiDoc, embedded with the client's files: it lists, searches and tries the operations, and loads nothing from
//! elsewhere.

use axum::Router;
use axum::routing::get;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use serde_json::{Value, json};
use utoipa::openapi::OpenApi as Description;
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::App;
use super::problem::ProblemBody;

/// What is not said by a handler.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tidings",
        description = "A persistent notification service with an offline inbox. Sockets are described in docs/reference/socketio.md. \
            An unknown query parameter is refused with 400 `invalid_query`, which names the one that was perhaps meant; a parameter \
            without a value counts as absent."
    ),
    components(schemas(ProblemBody), responses(ProblemBody)),
    modifiers(&Credentials),
    tags(
        (name = "push", description = "Store and deliver notifications"),
        (name = "inbox", description = "The inbox of one user"),
        (name = "notifications", description = "Status and retraction of pushes")
    )
)]
pub(super) struct Document;

/// What a request may show. The lists at the operations hold the scope that an API key needs.
struct Credentials;

impl Modify for Credentials {
    fn modify(&self, document: &mut Description) {
        let bearer = |about: &str| HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(about));
        let header = |name: &str, about: &str| {
            SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(name, about)))
        };
        let login = "The signed login of the user: `Tidings kid=k1, exp=1767225600, sig=...`";
        let schemes = [
            ("apiKey", SecurityScheme::Http(bearer("An API key").build())),
            ("apiKeyHeader", header("X-Api-Key", "An API key")),
            ("login", header("Authorization", login)),
            ("jwt", SecurityScheme::Http(bearer("A JWT of the user").bearer_format("JWT").build())),
        ];
        let components = document.components.get_or_insert_default();
        components.security_schemes.extend(schemes.map(|(name, scheme)| (name.to_owned(), scheme.into())));
    }
}

/// Adds a request in several languages to each operation, as `x-codeSamples`.
fn add_samples(document: &mut Description) {
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in [("GET", &mut item.get), ("POST", &mut item.post), ("DELETE", &mut item.delete)] {
            if let Some(operation) = operation {
                let samples = samples(method, path, operation.operation_id.as_deref());
                operation.extensions = Some(ExtensionsBuilder::new().add("x-codeSamples", samples).build());
            }
        }
    }
}

/// The service as it listens by default.
const EXAMPLE_URL: &str = "http://127.0.0.1:4001";

fn samples(method: &str, path: &str, operation_id: Option<&str>) -> Value {
    let body = match operation_id {
        Some("push") => Some(json!({"tokens": ["1"], "entityType": "like", "data": {"title": "Mia liked your photo"}})),
        Some("read") => Some(json!({"all": true})),
        Some("unread") => Some(json!({"ids": ["0198c0de-0000-7000-8000-000000000000"]})),
        _ => None,
    };
    let url = format!("{EXAMPLE_URL}{}", path.replace("{token}", "1"));
    let body = body.map(|body| body.to_string());
    let content = body.as_ref().map_or("", |_| r#", "content-type": "application/json""#);

    let curl_body =
        body.as_ref().map_or(String::new(), |body| format!(" -H 'content-type: application/json' -d '{body}'"));
    let curl = format!(r#"curl -X {method} '{url}' -H "authorization: Bearer $KEY"{curl_body}"#);

    let script_body = body.as_ref().map_or(String::new(), |body| format!("\n  body: JSON.stringify({body}),"));
    let script = format!(
        r#"const answer = await fetch("{url}", {{
  method: "{method}",
  headers: {{ authorization: `Bearer ${{key}}`{content} }},{script_body}
}});
console.log(await answer.text());"#
    );

    let python_body = body.as_ref().map_or("None".to_owned(), |body| format!("b'{body}'"));
    let python = format!(
        r#"import urllib.request

headers = {{"authorization": f"Bearer {{key}}"{content}}}
request = urllib.request.Request("{url}", {python_body}, headers, method="{method}")
print(urllib.request.urlopen(request).read().decode())"#
    );
    json!([
        {"lang": "shell", "label": "curl", "source": curl},
        {"lang": "javascript", "label": "JavaScript", "source": script},
        {"lang": "python", "label": "Python", "source": python},
    ])
}

pub(super) fn router(document: &Description) -> Router<App> {
    let mut document = document.clone();
    add_samples(&mut document);
    let json: &'static str = document.to_json().expect("a description always serialises").leak();
    Router::new()
        .route("/openapi.json", get(move || async move { ([(CONTENT_TYPE, "application/json")], json) }))
        .route(
            "/docs",
            get(async || {
                // RapiDoc sets style attributes.
                let policy = "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; \
                    style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
                let page = include_str!("docs/page.html");
                ([(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, policy)], page)
            }),
        )
}
