/* How fast could this machine move a round's bytes at all? The bare null round over OpenSSL.
 *
 *   limit CERTIFICATE KEY SILOS DOWN_BYTES UP_BYTES
 *
 * A server and SILOS clients, a thread for each end of each TLS 1.3 connection, in one process. For
 * each line on standard input one round: every client takes DOWN_BYTES, adds a constant and sends
 * UP_BYTES back; the server sums what comes, weighted, in float64, and casts the sum once. Printed
 * are the seconds from the first byte to the cast. Nothing is checked, hashed or written to a disk.
 * Connections stay open between rounds, as agents' do.
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 1 << 20, MOST = 4096 };

static size_t down_bytes, up_bytes, values;
static int silos;
static float *model;
static double *sum;
static pthread_mutex_t *stripes; /* one for each chunk of the sum */
static pthread_barrier_t begin, end;
static SSL_CTX *server_context, *client_context;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void *room(size_t bytes)
{
    void *made = malloc(bytes + CHUNK);
    if (!made)
        die("malloc");
    memset(made, 0, bytes + CHUNK); /* page faults belong to no round */
    return made;
}

static void send_all(SSL *line, const char *data, size_t bytes)
{
    while (bytes) {
        size_t sent;
        if (!SSL_write_ex(line, data, bytes < CHUNK ? bytes : CHUNK, &sent))
            die("SSL_write");
        data += sent;
        bytes -= sent;
    }
}

static size_t take(SSL *line, char *into, size_t bytes)
{
    size_t done = 0, got;
    while (done < bytes) {
        if (!SSL_read_ex(line, into + done, bytes - done, &got))
            die("SSL_read");
        done += got;
    }
    return done;
}

static void *serve(void *given)
{
    SSL *line = SSL_new(server_context);
    float *chunk = room(CHUNK);
    SSL_set_fd(line, (int)(long)given);
    if (SSL_accept(line) != 1)
        die("SSL_accept");
    for (;;) {
        pthread_barrier_wait(&begin);
        send_all(line, (const char *)model, down_bytes);
        for (size_t at = 0; at < up_bytes; at += CHUNK) {
            size_t count = take(line, (char *)chunk, up_bytes - at < CHUNK ? up_bytes - at : CHUNK);
            double *to = sum + at / sizeof(float);
            pthread_mutex_lock(&stripes[at / CHUNK]);
            for (size_t i = 0; i < count / sizeof(float); i++)
                to[i] += chunk[i] * (1.0 / silos);
            pthread_mutex_unlock(&stripes[at / CHUNK]);
        }
        pthread_barrier_wait(&end);
    }
    return NULL;
}

static void *train(void *given)
{
    SSL *line = SSL_new(client_context);
    float *own = room(down_bytes > up_bytes ? down_bytes : up_bytes);
    SSL_set_fd(line, (int)(long)given);
    if (SSL_connect(line) != 1)
        die("SSL_connect");
    for (;;) {
        take(line, (char *)own, down_bytes);
        for (size_t i = 0; i < up_bytes / sizeof(float); i++)
            own[i] += 1e-3f;
        send_all(line, (const char *)own, up_bytes);
    }
    return NULL;
}

static void start(void *(*work)(void *), int socket)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, (void *)(long)socket))
        die("pthread_create");
}

static void connect_silos(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listening, (void *)&address, length) || listen(listening, silos) ||
        getsockname(listening, (void *)&address, &length))
        die("listen");
    for (int k = 0; k < silos; k++) {
        int client = socket(AF_INET, SOCK_STREAM, 0), server;
        if (connect(client, (void *)&address, length) ||
            (server = accept(listening, NULL, NULL)) < 0)
            die("connect");
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        start(serve, server);
        start(train, client);
    }
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static SSL_CTX *context(const SSL_METHOD *method)
{
    SSL_CTX *made = SSL_CTX_new(method);
    SSL_CTX_set_min_proto_version(made, TLS1_3_VERSION);
    SSL_CTX_set_ciphersuites(made, "TLS_AES_128_GCM_SHA256"); /* gRPC's own first choice */
    return made;
}

int main(int count, char **argument)
{
    char line[16];
    if (count != 6 || (silos = atoi(argument[3])) < 1 || silos > MOST) {
        fprintf(stderr, "limit CERTIFICATE KEY SILOS DOWN_BYTES UP_BYTES\n");
        return 2;
    }
    down_bytes = strtoull(argument[4], NULL, 10);
    up_bytes = strtoull(argument[5], NULL, 10);
    values = up_bytes / sizeof(float);
    model = room(down_bytes > up_bytes ? down_bytes : up_bytes);
    sum = room(values * sizeof(double));
    stripes = calloc(up_bytes / CHUNK + 1, sizeof *stripes);
    for (size_t i = 0; i <= up_bytes / CHUNK; i++)
        pthread_mutex_init(&stripes[i], NULL);
    server_context = context(TLS_server_method());
    client_context = context(TLS_client_method());
    if (SSL_CTX_use_certificate_file(server_context, argument[1], SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_use_PrivateKey_file(server_context, argument[2], SSL_FILETYPE_PEM) != 1)
        die("certificate");
    pthread_barrier_init(&begin, NULL, silos + 1);
    pthread_barrier_init(&end, NULL, silos + 1);
    connect_silos();
    while (fgets(line, sizeof line, stdin)) {
        memset(sum, 0, values * sizeof *sum);
        double began = now();
        pthread_barrier_wait(&begin);
        pthread_barrier_wait(&end);
        for (size_t i = 0; i < values; i++)
            model[i] = (float)sum[i];
        printf("%.6f\n", now() - began);
        fflush(stdout);
    }
    return 0;
}
