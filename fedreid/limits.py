"""Every limit of the product, with its reason."""

KIB = 1024
MIB = 1024 * KIB

CHUNK_BYTES = 1 * MIB
"""Payload of one chunk: below 512 KiB the stream slows, above 4 MiB nothing is gained."""

MESSAGE_BYTES = 4 * MIB
"""gRPC's own default message limit, never raised: nothing unary may grow with the model."""

MANIFEST_TENSORS = 20_000
"""Tensors in one manifest: ResNet-50 has 267; a manifest must stay below MESSAGE_BYTES."""

TENSOR_NAME_BYTES = 256
"""Length of a tensor's name."""

TENSOR_DIMENSIONS = 8
"""Dimensions of one tensor."""

MODEL_BYTES = 8 * 1024 * MIB
"""Decoded size of a model: an overflowing product of shapes dies here."""

DISTANCE_RANGE = (0.0, 2.0)
"""What one minus a cosine can be."""

UPDATE_IMAGES = 100_000_000
"""Images that a silo may claim to have trained on."""

UPDATE_STEPS = 10_000_000
"""Optimiser steps that a silo may claim for a round: a hundred epochs over 32,621 images (MSMT17)
in pairs are 1.6 million."""

EVALUATIONS_PER_REPORT = 16
"""Results in one evaluation report: three models on a handful of test sets."""

TOKEN_TTL_S = 3600.0
"""Default life of a join token: long enough to carry it to a colleague."""

TOKEN_TTL_MAX_S = 7 * 86400.0
"""Longest life of a join token."""

LEAF_LIFE_S = 7 * 86400.0
"""Life of a silo's certificate."""

AUTHORITY_LIFE_S = 10 * 365 * 86400.0
"""Life of the federation's own certificate authority."""

SERVER_LIFE_S = 398 * 86400.0
"""Life of the coordinator's server certificate, the usual limit for servers."""

CLOCK_SKEW_S = 300.0
"""How far a certificate's start is set back, for sites whose clocks run behind."""

LONG_POLL_S = 20.0
"""How long NextTask waits: below the idle limit of common NAT boxes (30 s and more)."""

HEARTBEAT_S = 5.0
"""Pause between two heartbeats of a training agent."""

PRESENCE_S = 60.0
"""A silo not heard of for this long is not invited to the next round."""

CALL_S = 30.0
"""Deadline of a unary call that is no long poll."""

RECONNECT_MAX_S = 30.0
"""Longest pause between two attempts to reach the coordinator."""

CONCURRENT_UPLOADS = 4
"""Chunks and updates worked on at once. A slot is held while the coordinator works, never while
it waits for a silo, so that a silent one keeps nobody from theirs."""

CONCURRENT_DOWNLOADS = 4
"""Chunks of models read at once, for the same reason; flow control bounds the rest."""

HANDSHAKE_S = 10.0
"""From an accepted connection to its TLS and HTTP/2 greetings: some round trips, even by
satellite. Until then the port does not know who is there."""

CONNECTIONS = 2048
"""Connections open at once: hundreds of silos take one or two each, and idle ones end by
themselves. Each costs a file descriptor and some 120 KB, so this bounds memory too."""

FILES_KEPT_FREE = 512
"""File descriptors that connections never take: spool, journal, models and audit need theirs."""

CONNECTION_IDLE_S = 60.0
"""A connection without a call for this long is closed; an agent calls every few seconds."""

CALLS_PER_CALLER = 8
"""Calls that one certificate's holder may have under way at once: an agent has a long poll or a
transfer, a heartbeat and, while it renews, the same on a second channel."""

STREAMS_PER_CONNECTION = 32
"""HTTP/2 streams of one connection; more would only wait for CALLS_PER_CALLER."""

SPOOL_KEPT_FREE_BYTES = 64 * MIB
"""Disk space that unfinished uploads never take: the journal and the audit log, which may lie on
the same disk, must be able to grow while updates come in."""

FAILED_ROUNDS_IN_A_ROW = 5
"""After so many rounds without a published model the run stops and says why."""

JOB_LINE_BYTES = 1 * MIB
"""One line of a worker's JSON protocol: reports are numbers, never tensors."""

PLAN_BYTES = 64 * KIB
"""A plan file: a page of TOML."""

GATHER_S = 10.0
"""How long a round waits for registered silos that are away before it begins without them."""

MODELS_KEPT = 20
"""Published models kept on disk beside the current one; a ResNet-50 takes 98 MB."""

JOB_RETRY_S = 5.0
"""Pause before a failed job of a round is tried again."""

JOB_ATTEMPTS = 3
"""A job that fails this often by itself, such as a diverging distillation, ends its round."""

MESSAGE_IDLE_S = 60.0
"""A stream in which nothing moves for this long is ended: it would keep a transfer slot."""

RERANK_IMAGES = 150_000
"""Query and gallery images re-ranked together: with the usual settings the weights kept can take
1.8 GB at worst, and the work grows with the square, to some ten CPU minutes here."""

RERANK_NEIGHBOURS = 50
"""Largest k1 and k2 of re-ranking: memory grows with k1² · k2; the paper uses 20 and 6."""

FIGURES_KEPT = 10
"""Measured rounds that a silo remembers: mean and deviation are reported over the last ten."""

UNREADABLE_SHARE = 0.1
"""Of a silo's images: a few damaged files are left out and counted, so that a run of weeks is not
lost to one of them; past a tenth the disk or the copy has failed, and nothing is trained."""

DENIALS_KEPT = 1000
"""Refused callers told apart between two lines of the audit log."""

DENIALS_S = 5.0
"""How often refused calls are written to the audit log."""

AUDIT_FILE_BYTES = 64 * MIB
"""A file of the audit log before the next one is begun: some 200,000 events."""
