//! The README's queries, run beside the running service as an admin would.

use std::process::Command;

use crate::server::TestServer;

#[tokio::test]
async fn every_query_of_the_readme_runs_beside_the_server_and_finds_something() {
    let server = TestServer::builder().on_sqlite().start().await;
    let api = server.api();
    for who in ["Alice", "Bob", "Carol"] {
        let body = format!(r#"{{"tokens":["1","2"],"entityType":"like","data":{{"who":"{who}"}}}}"#);
        assert_eq!(api.post(&body).await.pushed().accepted, 2);
    }
    let mut socket = server.login("1").await;
    socket.replay().await;
    socket.call(r#"["ack",{"upTo":2}]"#).await;
    socket.call(r#"["read",{"upTo":1}]"#).await;

    let readme = include_str!("../../README.md");
    let queries: Vec<_> = readme.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(queries.len(), 10);
    for query in queries {
        // sqlite3 would take the comment at the start for an option.
        let query = format!(" {query}");
        let output = Command::new("sqlite3").arg("-readonly").arg(server.database()).arg(&query).output().unwrap();
        assert!(output.status.success(), "{query}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.stdout.is_empty(), "{query} found nothing");
    }
}
