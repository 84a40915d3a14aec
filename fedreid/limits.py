"""Every limit of the product, with its reason."""

KIB = 1024
MIB = 1024 * KIB

CHUNK_BYTES = 2 * MIB
"""Payload of one chunk at most: a larger one is refused."""

SENT_CHUNK_BYTES = 3 * MIB // 2
"""Payload of one chunk as it is sent: with 1 MiB rounds take longer, for each costs Python and gRPC
the same; with 2 MiB the coordinator's memory grows more with the transfers at once."""

FIRST_CHUNK_BYTES = 32 * KIB
"""Of a stream: six fast ones later chunks are as large as they may be, which costs nothing."""

LEAST_CHUNK_BYTES = 16 * KIB
"""However slow the line is: 2 s at 64 kbit/s, and calls around a chunk cost little beside it."""

SLOW_CHUNK_S = 4.0
"""A chunk that takes longer is followed by one of half its size: at 64 kbit/s one of 1 MiB takes
131 s, longer than MESSAGE_IDLE_S, and a break would lose all of it."""

MESSAGE_BYTES = 4 * MIB
"""gRPC's own default message limit, never raised: nothing unary may grow with the model."""

PAGE_BYTES = 1 * MIB
"""Of rounds or figures in one answer, beside the last of them: 1,000 rounds of 64 silos are some
10 MB, and an answer must stay below MESSAGE_BYTES."""

PAGE_ROUNDS = 64
"""Rounds that the journal is read for at once, to fill an answer."""

MANIFEST_TENSORS = 20_000
"""Tensors in one manifest: ResNet-50 has 267; a manifest must stay below MESSAGE_BYTES."""

TENSOR_NAME_BYTES = 256
"""Length of a tensor's name."""

TENSOR_DIMENSIONS = 8
"""Dimensions of one tensor."""

MODEL_BYTES = 8 * 1024 * MIB
"""Decoded size of a model: an overflowing product of shapes dies here."""

ZSTD_WINDOW_BYTES = 8 * MIB
"""Memory that a compressed payload may ask for: what every zstd decoder is meant to give, and 16
times what ours asks for."""

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
"""Life of a silo's certificate, unless the coordinator's settings say another."""

LEAF_LIFE_MIN_S = 2.0
"""Shortest life that can be set: certificates count whole seconds. Tests use a few of them."""

LEAF_LIFE_MAX_S = 90 * 86400.0
"""Longest life that can be set: what a stolen key is worth until it is noticed."""

RENEWAL_SHARE = 2 / 3
"""Share of a certificate's life after which it is renewed: a third is left for an outage."""

RENEWAL_JITTER = 0.1
"""Share of the life by which renewal comes earlier at random, so that silos that joined together
do not renew together."""

RENEWAL_PAUSE_S = 1.0
"""Least pause after a renewal that the coordinator asked for: a coordinator that never has enough
must not make its silos spin."""

KEY_GRACE_S = 3600.0
"""How long a silo's replaced key is still let in after the new one was first used: long enough for
a ResNet-50 update (94 MB) at 210 kbit/s. Its certificate's own end may come first."""

IDENTITY_VERSIONS = 3
"""Versions of an identity kept on disk: the live one, and two to look back at."""

APPROVAL_S = 7 * 86400.0
"""How long a silo may wait for a person to approve its key, after its token's own end."""

REASON_CHARACTERS = 500
"""Of a reason that a person gives: it goes into status messages, which gRPC bounds."""

KEEPING_S = 10.0
"""How often a program looks whether its certificate is due, or a certificate file has changed."""

AUTHORITY_LIFE_S = 10 * 365 * 86400.0
"""Life of the federation's own certificate authority."""

SERVER_LIFE_S = 398 * 86400.0
"""Life of the coordinator's server certificate, the usual limit for servers."""

CERTIFICATE_WARNING_S = 30 * 86400.0
"""Before a certificate of the coordinator's ends, from when on the doctor says so."""

CLOCK_SKEW_S = 300.0
"""How far a certificate's start is set back, for sites whose clocks run behind."""

LONG_POLL_S = 20.0
"""How long NextTask waits: below the idle limit of common NAT boxes (30 s and more)."""

THREAD_SWITCH_S = 0.0005
"""After which a thread of the coordinator's that computes lets the event loop go on: Python's own
5 ms would be added to each step of every call while updates are checked."""

OBJECTS_BEFORE_COLLECTING = 20_000
"""Objects made before the coordinator looks for cycles among them (Python: 700). Hundreds of
connections hold many that live as long as they do, and looking through them again and again took
a tenth of a round's time."""

WAKING_AT_ONCE = 8
"""Long polls that go on at once when a round begins: a thousand silos wait for that, and between
their answers other calls must have theirs within milliseconds. No more than that may wait for a
turn to fetch the model before others are let begin."""

BEGINNING_S = 0.05
"""How long it takes a silo that is let begin until it asks for its model."""

LEAST_WAIT_S = 1.0
"""How long a silo that may not begin at once is kept waiting at least, however short its poll."""

WATCH_S = 1.0
"""Pause between two looks of ``status --watch``, and between two notes of what an agent does."""

STALE_S = 5.0
"""After which an agent that notes nothing new is told to be silent: it notes every WATCH_S."""

HEARTBEAT_S = 5.0
"""Pause between two heartbeats of a training agent."""

PRESENCE_S = 60.0
"""A silo not heard of for this long is not invited to the next round."""

KEEPALIVE_S = 20.0
"""Pause after which a connection on which nothing comes is asked whether it still is one, below
the idle limit of common NAT boxes."""

KEEPALIVE_ANSWER_S = 30.0
"""How long the answer may take: on a slow line it waits behind what is already on its way, such as
200 kB of windows and buffers at 64 kbit/s. Who vanished is noticed within 50 s."""

PING_ANSWER_S = 180.0
"""Of the pings by which gRPC measures a line: its own 60 s are over before a slow line has carried
the windows that those same pings have opened, such as 1.4 MB at 64 kbit/s. While one is on its way
gRPC sends none to find out who vanished, so that may take as long."""

CALL_S = 30.0
"""Deadline of a unary call that is no long poll."""

RECONNECT_MAX_S = 30.0
"""Longest pause between two attempts to reach the coordinator."""

DIGEST_KNOWN_S = 60.0
"""How long a file that nobody has touched counts as having the digest it had: its bytes are in
memory still, while one that lies longer may be read from a failing disk the next time."""

CONCURRENT_UPLOADS = 4
"""Chunks and updates worked on at once. A slot is held while the coordinator works, never while
it waits for a silo, so that a silent one keeps nobody from theirs."""

UPLOAD_WINDOW_BYTES = 2 * MIB
"""Of each upload, what may be on its way unread: it bounds the coordinator's memory by silo, where
windows that gRPC widens by itself took 100 MB more with four of them. It must cover what a line
carries within one round trip, or it slows it: 2 MiB are 168 Mbit/s over 100 ms."""

RELIEVED_BYTES = MIB // 2
"""After a larger update an agent dials anew: gRPC keeps as much with the connection as it once read
in one go, up to the window and more, and the coordinator has hundreds of connections."""

CONCURRENT_DOWNLOADS = 4
"""Chunks of models read at once, for the same reason; flow control bounds the rest."""

SHARED_CHUNKS = 8
"""Chunks read last, kept for the other silos: those that fetch a model together are no further
apart than what a stream has on its way."""

SHARED_S = 5.0
"""How long such a chunk is given to others: a file that was mended is read again soon."""

CONCURRENT_TRANSFERS = 4
"""Models, and updates, that move at once unless the plan says another number, beside those on slow
lines: they fill the coordinator's processor, and other calls still have their turn in time."""

TURN_BYTES_PER_S = MIB // 2
"""A transfer that is slower takes little of the coordinator, and would keep others for hours."""

TURN_STALL_S = 2.0
"""How far behind that pace a transfer may fall before it loses its turn to the next in line, and
goes on without. Much shorter, a busy coordinator would take its own delay for theirs, and let all
move at once."""

TURN_WAIT_S = 1800.0
"""How long a transfer waits for its turn: a thousand ResNet-50 updates (94 GB) take a quarter of an
hour at 1 Gbit/s. Who waits longer asks again."""

HANDSHAKE_S = 10.0
"""From an accepted connection to its TLS and HTTP/2 greetings: some round trips, even by
satellite. Until then the port does not know who is there."""

CONNECTIONS = 2048
"""Connections open at once: hundreds of silos take one or two each, and idle ones end by
themselves. Each costs a file descriptor and some 120 KB, so this bounds memory too."""

FILES_PER_CONNECTION = 3
"""File descriptors of a silo: its connection, and the two files of an upload on a slow line."""

FILES_KEPT_FREE = 512
"""File descriptors that silos never take: journal, models, audit and the worker need theirs."""

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

DISK_WATCH_S = 5.0
"""How often the coordinator looks whether its disk still takes writes."""

SILOS_LABELLED = 2000
"""Silos with series of their own in the coordinator's metrics, about twenty each: as many as are
connected at once. Those beyond are counted together, so that no registry floods a Prometheus."""

TEXTFILE_S = 15.0
"""How often an agent writes its metrics to a file: as often as Prometheus commonly scrapes."""

VERSIONS_AHEAD = 1_000_000
"""How far ahead of the coordinator's newest model a silo's may be believed to be: a backup is not
that old, and a silo must not use up the versions."""

FAILED_ROUNDS_IN_A_ROW = 5
"""After so many rounds without a published model the run stops and says why."""

JOB_LINE_BYTES = 1 * MIB
"""One line of a worker's JSON protocol: reports are numbers, never tensors."""

PROGRESS_S = 0.1
"""Least pause between two lines of progress that a worker tells its parent: nobody reads faster,
and an aggregation has thousands of blocks."""

PLAN_BYTES = 64 * KIB
"""A plan file: a page of TOML."""

GATHER_S = 10.0
"""How long a round waits for registered silos that are away before it begins without them."""

MODELS_KEPT = 20
"""Rounds whose models are kept on disk beside the newest one's where the settings say nothing
else; a ResNet-50 takes 98 MB."""

COORDINATOR_SPARES = 17
"""Files of counted updates and of an old model, zeros by now, kept for the next round's; 98 MB each
for ResNet-50."""

AGENT_SPARES = 5
"""The same at a silo: for the next model and the next update, and with differences for their
payloads and for what rounding leaves unsaid."""

LEAST_SPARE_BYTES = 64 * KIB
"""A smaller file is made anew as fast."""

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

POLICY_RETRY_S = 600.0
"""Pause after a model that a silo's policy refuses. Longer than PRESENCE_S: the next round begins
without the silo, so that nobody waits for it."""

AGENT_DISK_BYTES = 2048 * MIB
"""Free space that an agent wants before it joins: two models, an update, its payload and the
baseline are five files of 98 MB with ResNet-50, and the checkpoints of both trainings with Adam
six more; the rest is room for larger backbones."""

CHECKPOINT_S = 60.0
"""Pause between two checkpoints of a training: what a kill costs at most, beside a start."""

CHECKPOINT_SHARE = 0.02
"""Of the time that writing checkpoints may take: a slow disk makes them rarer."""

DIAL_S = 10.0
"""How long ``join --dry-run`` waits for each step of a connection."""

RELEASE_BYTES = 4 * MIB
"""A signed release on disk, which holds one manifest."""

POLICY_KEY_CHARACTERS = 64
"""Of the policy's key with which a silo declines a round; the longest there is has 22."""

REFUSAL_CHARACTERS = 300
"""Of a refusal in the agent's audit log: part of it may be the coordinator's own words."""

OUTLIER_EXCESS = 4.0
"""How many times further than the others' median an update moves, per step and per root of steps,
before it is an outlier: honest silos of 12:6:3:2:1 images stay below 1.5, one with the odd camera
of six came to 3.7; a change of ten times its length lies beyond, even of the smallest of them."""

AGAINST_EXCESS = 1.5
"""The same for an update that points against the others. Its direction alone is no reason: screened
by it, the largest of four honest silos had no share in every other round, which cost it 3.5 points
of mAP."""

SHORT = 1.5
"""How many times as far as the others' median a silo may move without being asked for its steps."""

AGREEMENT = 0.1
"""Mean cosine between the other silos' updates from which a direction against them is an outlier:
honest updates of few steps are nearly orthogonal, and their cosines scatter by some 0.05."""

DISTANCE_EXCESS = 10.0
"""How many times the others' median a cosine distance may be before it is not believed: that of
the largest of 12:6:3:2:1 honest silos was up to 4.4 times."""

STATISTIC_EXCESS = 5.0
"""How many times further than the median a running mean or variance may move where updates are
clipped: with momentum 0.1 a silo of many steps takes its own statistics on, one of few hardly."""

STANDSTILL = 0.01
"""Share of the others' median movement per step below which an update is the base model handed
back."""

COPY_COSINE = 0.95
"""Cosine with the model's last movement from which an update is a scaled copy of it: the round's
own batches take an honest one elsewhere, and its cosine to 0.3 at most."""
