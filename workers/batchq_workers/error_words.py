"""What the words that providers put into `error_type`, `code` and `type` of an error mean.

Sources: OpenRouter's `error_type` vocabulary (openrouter.ai/docs/api-reference/errors), OpenAI's error
codes (platform.openai.com/docs/guides/error-codes) and those of a failed response in its API types,
Anthropic's error types (docs.anthropic.com/en/api/errors), Azure's `content_filter`.
"""

from __future__ import annotations

from typing import NamedTuple


class Meaning(NamedTuple):
    """The HTTP status that a word stands for, and the error class that it gives, if it says that much.

    A word with a class decides whatever status it came with; one without only takes the place of a status.
    """

    status: int
    error_class: str | None


_MEANINGS: tuple[tuple[int, str | None, str], ...] = (
    (400, "context_length", "context_length_exceeded exceed_context_size_error"),
    (400, "truncated", "max_tokens_exceeded"),
    (400, "too_expensive", "token_limit_exceeded"),
    (400, "too_large", "string_too_long string_above_max_length payload_too_large request_too_large"),
    (400, "moderation", "content_policy_violation refusal content_filter moderation_blocked"),
    (400, "moderation", "image_content_policy_violation bio_policy misalignment_policy_violation"),
    (400, "bad_image", "invalid_image invalid_image_format invalid_image_mode invalid_image_url invalid_base64_image"),
    (400, "bad_image", "image_too_large image_too_small image_file_too_large image_parse_error empty_image_file"),
    (400, "bad_image", "unsupported_image_format unsupported_image_media_type"),
    (400, "image_unavailable", "image_not_found image_file_not_found image_download_failed failed_to_download_image"),
    (401, "bad_key", "authentication authentication_error invalid_api_key"),
    (402, "no_credit", "payment_required"),
    (403, "region_restricted", "unsupported_country_region_territory data_residency_mismatch"),
    (404, "unknown_model", "model_not_found"),
    (429, "rate_limited", "rate_limit_exceeded rate_limit_error slow_down"),
    (503, "overloaded", "provider_overloaded server_is_overloaded overloaded_error"),
    (400, None, "invalid_request invalid_request_error invalid_prompt"),
    (403, None, "permission_denied permission_error"),
    (404, None, "not_found not_found_error"),
    (412, None, "precondition_failed"),
    (422, None, "unprocessable"),
    (500, None, "server server_error api_error unmapped"),
    (502, None, "provider_unavailable"),
    (504, None, "timeout timeout_error vector_store_timeout"),
)

ERROR_WORDS = {word: Meaning(status, error_class) for status, error_class, words in _MEANINGS for word in words.split()}

# An account that has run dry, with whatever status: OpenAI says so in a 429.
BILLING_WORDS = frozenset(
    {
        "billing_error",
        "billing_hard_limit_reached",
        "credit_balance_exhausted",
        "insufficient_quota",
        "organization_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "project_spend_limit_exceeded",
    }
)
