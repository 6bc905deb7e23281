//! The description of the HTTP interface, generated from the handlers: `/openapi.json` for programs, `/docs` for people.

use std::fmt::{self, Write};

use axum::Router;
use axum::routing::get;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use serde_json::Value;
use utoipa::openapi::OpenApi as Description;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::App;
use super::problem::ProblemBody;

/// What is not said by a handler.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tidings",
        description = "A persistent notification service with an offline inbox. Sockets are described in the README."
    ),
    components(schemas(ProblemBody), responses(ProblemBody)),
    modifiers(&Credentials),
    tags(
        (name = "push", description = "Tell users something"),
        (name = "inbox", description = "The inbox of one user"),
        (name = "notifications", description = "What was pushed")
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

pub(super) fn router(document: &Description) -> Router<App> {
    let json: &'static str = document.to_json().expect("a description always serialises").leak();
    let page: &'static str = page(document).leak();
    Router::new()
        .route("/openapi.json", get(move || async move { ([(CONTENT_TYPE, "application/json")], json) }))
        .route(
            "/docs",
            get(move || async move {
                let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; \
                    base-uri 'none'; form-action 'none'";
                ([(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, policy)], page)
            }),
        )
}

/// The description as one page without scripts: each operation with what it takes and answers, then the shapes.
fn page(document: &Description) -> String {
    let document = serde_json::to_value(document).expect("a description always serialises");
    let mut page = String::new();
    operations(&mut page, &document)
        .and_then(|()| shapes(&mut page, &document))
        .expect("writing to a text never fails");
    include_str!("docs/page.html").replace("{{OPERATIONS_AND_SHAPES}}", &page)
}

fn operations(page: &mut String, document: &Value) -> fmt::Result {
    for tag in list(&document["tags"]) {
        let name = text(&tag["name"]);
        writeln!(page, "<h2>{}</h2>", escaped(text(&tag["description"])))?;
        for (path, methods) in entries(&document["paths"]) {
            for (method, operation) in entries(methods) {
                if list(&operation["tags"]).any(|tag| text(tag) == name) {
                    operation_of(page, &method.to_uppercase(), path, operation)?;
                }
            }
        }
    }
    Ok(())
}

fn operation_of(page: &mut String, method: &str, path: &str, operation: &Value) -> fmt::Result {
    let id = escaped(text(&operation["operationId"]));
    writeln!(page, "<section id=\"{id}\"><h3><b>{method}</b> <code>{}</code></h3>", escaped(path))?;
    writeln!(page, "<p>{}. {}</p>", escaped(text(&operation["summary"])), escaped(text(&operation["description"])))?;
    writeln!(page, "<p>{}</p>", needed(operation))?;
    let parameters: Vec<&Value> = list(&operation["parameters"]).collect();
    if !parameters.is_empty() {
        writeln!(page, "<table><tr><th>parameter<th>in<th>type<th></tr>")?;
        for parameter in parameters {
            let (name, place) = (escaped(text(&parameter["name"])), escaped(text(&parameter["in"])));
            let (kind, about) = (kind(&parameter["schema"]), escaped(text(&parameter["description"])));
            writeln!(page, "<tr><td><code>{name}</code><td>{place}<td>{kind}<td>{about}</tr>")?;
        }
        writeln!(page, "</table>")?;
    }
    for (media, body) in entries(&operation["requestBody"]["content"]) {
        writeln!(page, "<p>Body: {} as <code>{}</code></p>", kind(&body["schema"]), escaped(media))?;
    }
    writeln!(page, "<ul>")?;
    for (status, answer) in entries(&operation["responses"]) {
        let shapes: Vec<_> = entries(&answer["content"]).map(|(_, body)| kind(&body["schema"])).collect();
        let shapes = if answer["$ref"].is_null() { shapes.join(", ") } else { kind(answer) };
        writeln!(page, "<li><code>{}</code> {} {shapes}</li>", escaped(status), escaped(text(&answer["description"])))?;
    }
    writeln!(page, "</ul></section>")
}

/// Who may do it, where anybody is asked.
fn needed(operation: &Value) -> String {
    let mut needed = "For everybody".to_owned();
    for (scheme, scopes) in list(&operation["security"]).flat_map(entries) {
        match scheme.as_str() {
            "apiKey" => {
                let scopes: Vec<_> = list(scopes).map(|scope| escaped(text(scope))).collect();
                needed = format!("For API keys with the scope <code>{}</code>", scopes.join(", "));
            }
            "login" => needed += ", and for the user's own login",
            _ => {}
        }
    }
    needed
}

fn shapes(page: &mut String, document: &Value) -> fmt::Result {
    writeln!(page, "<h2>Shapes</h2>")?;
    for (name, schema) in entries(&document["components"]["schemas"]) {
        let (name, about) = (escaped(name), escaped(text(&schema["description"])));
        writeln!(page, "<section id=\"{name}\"><h3>{name}</h3><p>{about}</p>")?;
        if schema["oneOf"].is_null() {
            fields(page, schema)?;
        }
        for choice in list(&schema["oneOf"]) {
            writeln!(page, "<p>{}</p>", escaped(text(&choice["description"])))?;
            fields(page, choice)?;
        }
        writeln!(page, "</section>")?;
    }
    Ok(())
}

fn fields(page: &mut String, schema: &Value) -> fmt::Result {
    writeln!(page, "<table><tr><th>field<th>type<th></tr>")?;
    let required: Vec<&str> = list(&schema["required"]).map(text).collect();
    for (field, shape) in entries(&schema["properties"]) {
        let optional = if required.contains(&field.as_str()) { "" } else { "?" };
        let (kind, about) = (kind(shape), escaped(text(&shape["description"])));
        writeln!(page, "<tr><td><code>{}{optional}</code><td>{kind}<td>{about}</tr>", escaped(field))?;
    }
    writeln!(page, "</table>")
}

/// What a schema is, in a word or a link.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        let name = escaped(name);
        return format!("<a href=\"#{name}\">{name}</a>");
    }
    if !schema["oneOf"].is_null() {
        return list(&schema["oneOf"]).map(kind).collect::<Vec<_>>().join(", or ");
    }
    match &schema["type"] {
        Value::String(kind) if kind == "array" => format!("list of {}", self::kind(&schema["items"])),
        Value::String(kind) => escaped(kind),
        Value::Array(kinds) => kinds.iter().map(text).map(escaped).collect::<Vec<_>>().join(" or "),
        _ => "any".to_owned(),
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
