//! `GET /docs`: the document as a page for people. Served whole by this program: it asks nobody else for anything, and the
//! browser is told to refuse it if it did.

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, header};
use tidegate_api::ProblemType;

use crate::problem::{Named, Problem};
use crate::url::UrlPath;

const PAGE: &str = include_str!("docs/page.html");
const STYLE: &str = include_str!("docs/style.css");
const SCRIPT: &str = include_str!("docs/script.js");

/// What a page of ours may load: our own style and script, and the document. Nothing inline, nothing from elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      form-action 'none'; frame-ancestors 'none'; base-uri 'none'";

/// Read the documentation
#[utoipa::path(
    get,
    path = "/docs",
    operation_id = "docs",
    tag = "about",
    responses((status = 200, description = "The page", body = String, content_type = "text/html")),
)]
pub(crate) async fn page() -> Response {
    sent(PAGE.to_owned(), "text/html; charset=utf-8")
}

/// Style and script of the documentation
#[utoipa::path(
    get,
    path = "/docs/{file}",
    tag = "about",
    params(("file" = String, Path, description = "`style.css` or `script.js`")),
    responses(
        (status = 200, description = "The file", content((String = "text/css"), (String = "text/javascript"))),
        Named,
    ),
)]
pub(crate) async fn part(UrlPath(file): UrlPath<String>) -> Result<Response, Problem> {
    match file.as_str() {
        "style.css" => Ok(sent(STYLE.to_owned(), "text/css; charset=utf-8")),
        "script.js" => Ok(sent(SCRIPT.to_owned(), "text/javascript; charset=utf-8")),
        _ => Err(Problem::new(ProblemType::NotFound, "the page has a style.css and a script.js, and no other file")),
    }
}

fn sent(text: String, media_type: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(media_type)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    ];
    (headers, text).into_response()
}

/// A type of problem, for a page.
#[derive(Debug)]
pub(crate) struct ProblemPage {
    pub(crate) slug: &'static str,
    pub(crate) title: &'static str,
    pub(crate) status: u16,
    pub(crate) retryable: bool,
    pub(crate) about: String,
    pub(crate) fix: &'static str,
}

/// The page of a type of problem.
pub(crate) fn problem(page: &ProblemPage) -> Response {
    let again =
        if page.retryable { "The same request can succeed later." } else { "The same request will not succeed." };
    let (slug, title, status) = (page.slug, escaped(page.title), page.status);
    let (about, fix) = (escaped(&page.about), escaped(page.fix));
    let html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{slug} – Tidegate</title>\n\
         <link rel=\"stylesheet\" href=\"../docs/style.css\">\n</head>\n<body>\n<main>\n\
         <p><a href=\"../docs\">Tidegate</a></p>\n<h1>{title}</h1>\n<p><code>/problems/{slug}</code>, status {status}. {again}</p>\n\
         <p>{about}</p>\n<h2>What to do</h2>\n<p>{fix}</p>\n</main>\n</body>\n</html>\n"
    );
    sent(html, "text/html; charset=utf-8")
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_ask_nobody_else_for_anything() {
        for (name, text) in [("page.html", PAGE), ("style.css", STYLE), ("script.js", SCRIPT)] {
            for forbidden in [
                "http://",
                "https://",
                "//cdn",
                "@import",
                "url(",
                "<script>",
                "style=\"",
                "onclick",
                "innerHTML",
                "eval(",
            ] {
                // The page writes commands for curl, which is no address of a style sheet.
                let text = text.replace("curl(", "");
                assert!(!text.contains(forbidden), "{name} has {forbidden}");
            }
        }
    }

    #[test]
    fn what_stands_in_a_page_is_text_and_no_markup() {
        assert_eq!(escaped("<a href=\"x\">&'"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
    }
}
