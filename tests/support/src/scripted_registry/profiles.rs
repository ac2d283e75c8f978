//! Registries as they are: each function makes a scripted registry, with the artifact pushed, answer like one of them,
//! and says where that is written down.

use std::time::Duration;

use super::{ALWAYS, Fault, Gate, Kind, Matcher, ScriptedRegistry};

/// What a profile needs: the registry, a host for its blobs, one for its tokens, and the digests of the layers.
pub struct Parts<'a> {
    pub registry: &'a ScriptedRegistry,
    pub storage: &'a ScriptedRegistry,
    pub tokens: &'a ScriptedRegistry,
    pub layers: &'a [String],
}

/// Makes a registry odd.
pub type Profile = fn(&Parts<'_>);

fn blobs() -> [Matcher; 2] {
    [Matcher::blobs(), Matcher::kind(Kind::Config)]
}

fn blobs_always(parts: &Parts<'_>, fault: Fault) {
    for matcher in blobs() {
        parts.registry.fault(matcher, fault.clone(), ALWAYS);
    }
}

/// distribution 2.8: a range past the end is 416 with a `Content-Range` that does not tell the blob's length.
/// Observed with Debian's docker-registry 2.8.2.
pub fn distribution_2_8(parts: &Parts<'_>) {
    blobs_always(parts, Fault::StrictRanges);
}

/// distribution 3 as a pull-through cache: the first request for a blob ignores its range.
/// <https://github.com/distribution/distribution/issues/4667>
pub fn distribution_3_pull_through_cache(parts: &Parts<'_>) {
    for layer in parts.layers {
        parts.registry.fault(Matcher::blob(layer), Fault::IgnoreRange, 1);
    }
}

/// Zot: several ranges at once are 416.
/// <https://github.com/project-zot/zot/issues/3623>
pub fn zot(parts: &Parts<'_>) {
    blobs_always(parts, Fault::StrictRanges);
}

/// Harbor's proxy cache: a blob that it does not have yet comes whole, with 200, and the cache is filled behind that:
/// the next requests may come before it is. <https://github.com/goharbor/harbor/issues/23875>
pub fn harbor_proxy_cache(parts: &Parts<'_>) {
    parts.registry.require_token();
    for layer in parts.layers {
        parts.registry.fault(Matcher::blob(layer), Fault::IgnoreRange, 3);
    }
}

/// Quay: blobs by signed addresses that live for 600 s (observed at quay.io), tokens that do not say how long they live
/// (<https://github.com/quay/quay/blob/master/endpoints/v2/v2auth.py>: `jsonify({"token": …})`), and manifests given as
/// what the client accepts, whatever was pushed (<https://github.com/eclipse-che/che-plugin-registry/pull/2082>).
pub fn quay(parts: &Parts<'_>) {
    parts.registry.require_token();
    parts.registry.hide_token_lifetime();
    parts.registry.keep_blobs_at(parts.storage);
    let media_type = "application/vnd.docker.distribution.manifest.v2+json";
    parts.registry.fault(Matcher::manifests(), Fault::ContentType(media_type.into()), ALWAYS);
}

/// Docker Hub: tokens from auth.docker.io, blobs from a CDN, and each GET of a manifest counted.
/// <https://docs.docker.com/docker-hub/usage/pulls/>
pub fn docker_hub(parts: &Parts<'_>) {
    parts.registry.take_tokens_from(parts.tokens);
    parts.registry.keep_blobs_at(parts.storage);
    for header in [("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "99;w=21600")] {
        parts.registry.fault(Matcher::manifests(), Fault::Header(header.0, header.1), ALWAYS);
    }
}

/// Amazon ECR: blobs redirected to S3 with the signature in the query; HEAD of a blob is refused; no
/// `Docker-Content-Digest`. <https://github.com/buildbuddy-io/buildbuddy/pull/12566>,
/// <https://github.com/distribution/distribution/issues/3792>
pub fn amazon_ecr(parts: &Parts<'_>) {
    parts.registry.keep_blobs_at(parts.storage);
    parts.registry.fault(Matcher::path("/blobs/").method("HEAD"), Fault::status(401), ALWAYS);
    parts.registry.fault(Matcher::manifests(), Fault::WithoutHeader("Docker-Content-Digest"), ALWAYS);
}

/// GHCR: tokens for everybody from its own host, blobs from another with addresses that expire after minutes and take
/// no HEAD. <https://github.com/containerd/stargz-snapshotter/pull/167>
pub fn ghcr(parts: &Parts<'_>) {
    parts.registry.require_token();
    parts.registry.keep_blobs_at(parts.storage);
    parts.storage.fault(Matcher::path("/blobs/").method("HEAD"), Fault::status(403), ALWAYS);
}

/// GitLab: tokens from its web application, which is another host (`/jwt/auth`), and redirects to the CDN for some
/// requests only. <https://docs.gitlab.com/administration/packages/container_registry/>,
/// <https://gitlab.com/gitlab-org/container-registry/-/merge_requests/830>
pub fn gitlab(parts: &Parts<'_>) {
    parts.registry.take_tokens_from(parts.tokens);
    parts.registry.share_blobs_with(parts.storage);
    if let Some(layer) = parts.layers.first() {
        let away = Fault::Redirect(parts.storage.blob_url("pastis", layer));
        parts.registry.fault(Matcher::blob(layer), away, ALWAYS);
    }
}

/// Azure: the token is called `access_token` and does not say how long it lives; blobs lie in Azure's storage, which
/// refuses a signed address that comes with an `Authorization`.
/// <https://learn.microsoft.com/en-us/rest/api/containerregistry/access-tokens/get-from-login>,
/// <https://github.com/Azure/acr/issues/217>
pub fn azure(parts: &Parts<'_>) {
    parts.registry.guard(Gate { oauth: true, untold: true, ..Gate::default() });
    parts.registry.keep_blobs_at(parts.storage);
    parts.storage.fault(Matcher::any().with_header("authorization"), Fault::status(400), ALWAYS);
}

/// Artifactory: checksums in headers of its own, no `Docker-Content-Digest`, manifests as `application/octet-stream`.
/// <https://github.com/deitch/docker_registry2/issues/83>
pub fn artifactory(parts: &Parts<'_>) {
    parts.registry.fault(Matcher::manifests(), Fault::WithoutHeader("Docker-Content-Digest"), 2);
    parts.registry.fault(Matcher::manifests(), Fault::ContentType("application/octet-stream".into()), ALWAYS);
    blobs_always(parts, Fault::WithoutHeader("Docker-Content-Digest"));
}

/// Google Artifact Registry: 302 to a signed path of its own host, without host in `Location`.
/// <https://github.com/ahmetb/serverless-registry-proxy/issues/8>
pub fn google_artifact_registry(parts: &Parts<'_>) {
    parts.registry.require_token();
    for layer in parts.layers {
        let to = vec![("Location".to_owned(), format!("/v2/artifacts-downloads/blobs/{layer}?signature=x"))];
        let asked = Matcher::path(&format!("pastis/blobs/{layer}"));
        parts.registry.fault(asked, Fault::Status(302, to, String::new()), ALWAYS);
    }
}

/// An object store behind nginx, which breaks off when its upstream does: some bodies end early, and it answers 502
/// while the upstream restarts. <https://nginx.org/en/docs/http/ngx_http_proxy_module.html>, `proxy_next_upstream`
pub fn object_store_behind_nginx(parts: &Parts<'_>) {
    parts.registry.keep_blobs_at(parts.storage);
    parts.storage.fault(Matcher::blobs().nth(2), Fault::ShortBody, ALWAYS);
    parts.storage.fault(Matcher::blobs().nth(3), Fault::status(502), ALWAYS);
}

/// A server without ranges: the distribution specification says that a registry SHOULD support them.
/// <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-blobs>, RFC 9110, section 14.2
pub fn without_ranges(parts: &Parts<'_>) {
    blobs_always(parts, Fault::IgnoreRange);
}

/// A server that compresses on the fly whatever may be compressed. RFC 9110, section 12.5.3;
/// <https://nginx.org/en/docs/http/ngx_http_gzip_module.html>
pub fn compresses_on_the_fly(parts: &Parts<'_>) {
    for matcher in [Matcher::manifests(), Matcher::blobs(), Matcher::kind(Kind::Config)] {
        parts.registry.fault(matcher, Fault::CompressUnlessIdentity, ALWAYS);
    }
}

/// HTTP/1.0: no chunks, the body ends with the connection. RFC 1945, section 7.2.2;
/// <https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_http_version>
pub fn http_1_0(parts: &Parts<'_>) {
    parts.registry.fault(Matcher::any(), Fault::Http10, ALWAYS);
}

/// `Transfer-Encoding: chunked` on ranges, and no `Content-Length`. RFC 9112, section 6.1
pub fn chunked_ranges(parts: &Parts<'_>) {
    parts.registry.fault(Matcher::any(), Fault::NoLength, ALWAYS);
}

/// A `Content-Length` that is wrong now and then: a proxy between lost the end of the body. RFC 9110, section 8.6
pub fn wrong_content_length(parts: &Parts<'_>) {
    for nth in [1, 6, 11] {
        parts.registry.fault(Matcher::blobs().nth(nth), Fault::ShortBody, 1);
        parts.registry.fault(Matcher::blobs().nth(nth + 1), Fault::ExtraBody, 1);
    }
}

/// `Docker-Content-Digest` is optional. <https://github.com/containerd/containerd/issues/3238>
pub fn docker_content_digest_missing(parts: &Parts<'_>) {
    parts.registry.fault(Matcher::any(), Fault::WithoutHeader("Docker-Content-Digest"), ALWAYS);
}

/// `Docker-Content-Digest` of something else, once: a cache mixed up two answers.
/// <https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-blobs>: the value MUST match
pub fn docker_content_digest_false_once(parts: &Parts<'_>) {
    parts.registry.fault(Matcher::blobs().nth(2), Fault::WrongDigestHeader, 1);
}

/// 206 for another range, once: seen from caches that cut files into slices.
/// <https://nginx.org/en/docs/http/ngx_http_slice_module.html>; RFC 9110, section 15.3.7
pub fn another_range_once(parts: &Parts<'_>) {
    parts.registry.fault(Matcher::blobs().nth(2), Fault::WrongContentRange, 1);
}

/// The first byte is late: storage that is fetched from tape, or a cache that scans first.
/// <https://github.com/goharbor/harbor/issues/23875> for a proxy that fetches everything before it answers
pub fn slow_first_byte(parts: &Parts<'_>) {
    parts.registry.fault(Matcher::any(), Fault::Delay(Duration::from_millis(300)), ALWAYS);
}

/// Bytes come in drops.
/// <https://nginx.org/en/docs/http/ngx_http_core_module.html#limit_rate>
pub fn slow_trickle(parts: &Parts<'_>) {
    parts.registry.fault(Matcher::any(), Fault::Trickle(Duration::from_millis(30)), ALWAYS);
}

/// A registry that is asked too often: 429 with `Retry-After`. RFC 6585, section 4;
/// <https://docs.docker.com/docker-hub/usage/>
pub fn rate_limited(parts: &Parts<'_>) {
    let wait = vec![("Retry-After".to_owned(), "1".to_owned())];
    for nth in [2, 5] {
        parts.registry.fault(Matcher::blobs().nth(nth), Fault::Status(429, wait.clone(), String::new()), 1);
    }
}
