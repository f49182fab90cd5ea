// Replays streams of server-sent events as engines send them: every event is an HTTP chunk of its
// own and a write of its own, on a connection with TCP_NODELAY.
//
//     server DIRECTORY
//
// DIRECTORY holds KIND.head, KIND.body and KIND.tail, which streams.py writes. The first line of the
// output is the port; the server ends when its standard input does.
//
//     POST /tGATE/TOKENS/...   flat out, one event per stream in turn; all streams wait behind their
//                              first event until GATE of them do
//     POST /pUS/TOKENS/...     an event every US microseconds, the phase chosen at random
//     POST /nUS/TOKENS/...     the same, the first event at once
//     POST /sUS/TOKENS/...     as p, the text of each token the time at which it was sent, in ns of
//                              CLOCK_MONOTONIC
//     GET  /stats              how late tokens were sent since the last such request
//     GET  .../models          a listing of one model; any other path: an empty object
//
// The path tells the kind: llama.cpp's for .../completion, vLLM's chat otherwise. TOKENS may exceed
// what the body holds; it is then repeated.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FD = 65536, MAX_REQUEST = 8192, MAX_SEGMENT = 4096, LATENESS_US = 1 << 20 };
enum { VLLM_CHAT, LLAMACPP, STAMPED, KINDS };
static const char *const KIND_NAMES[KINDS] = {"vllm_chat", "llamacpp", "stamped"};
static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
static const char LISTING[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"owned_by\":\"vllm\","
    "\"max_model_len\":131072}]}";
static const char STAMP_KEY[] = "\"content\":\"";
enum { STAMP_DIGITS = 18 };

typedef struct {
    char *at;
    size_t size;
} Bytes;

// A whole response and where its segments end; the first segment is the head with the first event.
typedef struct Response {
    int kind;
    long tokens;
    size_t first_token; // its segment
    char *at;
    size_t size, capacity;
    size_t *ends;
    size_t segments;
    struct Response *next;
} Response;

typedef struct {
    char *input; // MAX_REQUEST + 1 bytes while the connection is open
    size_t held;
    const Response *response; // what is being sent; NULL between requests
    size_t segment, sent;     // the segment under way, and the bytes of the response sent so far
    int64_t interval, due, stamp;
    long gate;
    int wants_write;
} Connection;

static Bytes head[KINDS], body[KINDS], tail[KINDS];
static Response *responses;
static Connection connections[MAX_FD];
static int epoll;

// Streams that are sent flat out, in turn; those that wait at the gate; those with a time, as a heap.
static int flat[MAX_FD], waiting[MAX_FD], heap[MAX_FD];
static size_t flat_count, waiting_count, heap_count;
static uint32_t lateness[LATENESS_US + 1];

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void *allocated(void *at) {
    if (!at) die("memory");
    return at;
}

static Bytes slurp(const char *directory, const char *kind, const char *part) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.%s", directory, kind, part);
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    fseek(file, 0, SEEK_END);
    Bytes found = {.size = (size_t)ftell(file)};
    rewind(file);
    found.at = allocated(malloc(found.size + 1));
    if (fread(found.at, 1, found.size, file) != found.size) die(path);
    fclose(file);
    return found;
}

// Responses.

static void append(Response *response, const void *at, size_t size) {
    while (response->size + size > response->capacity) {
        response->capacity = response->capacity ? response->capacity * 2 : 1 << 16;
        response->at = allocated(realloc(response->at, response->capacity));
    }
    memcpy(response->at + response->size, at, size);
    response->size += size;
}

static void append_event(Response *response, const char *at, size_t size) {
    char framing[32];
    append(response, framing, (size_t)sprintf(framing, "%zx\r\n", size));
    append(response, at, size);
    append(response, "\r\n", 2);
    response->ends[response->segments++] = response->size;
}

// Appends `count` events of `from`, over and over; all of them once for -1.
static void append_events(Response *response, Bytes from, long count) {
    const char *at = from.at, *end = from.at + from.size;
    for (long done = 0; from.size && done != count; done++) {
        if (at == end) {
            if (count < 0) break;
            at = from.at;
        }
        const char *blank = memmem(at, (size_t)(end - at), "\n\n", 2);
        if (!blank) break;
        append_event(response, at, (size_t)(blank + 2 - at));
        at = blank + 2;
    }
}

static const Response *rendered(int kind, long tokens) {
    for (Response *known = responses; known; known = known->next)
        if (known->kind == kind && known->tokens == tokens) return known;
    Response *made = allocated(calloc(1, sizeof *made));
    *made = (Response){.kind = kind, .tokens = tokens, .next = responses};
    made->ends = allocated(malloc(((size_t)tokens + 16) * sizeof *made->ends));
    append(made, STREAM_HEAD, sizeof STREAM_HEAD - 1);
    append_events(made, head[kind], -1);
    made->first_token = made->segments;
    append_events(made, body[kind], tokens);
    append_events(made, tail[kind], -1);
    append(made, "0\r\n\r\n", 5);
    made->ends[made->segments - 1] = made->size;
    return responses = made;
}

// Connections.

static void want_write(int fd, int wanted) {
    if (connections[fd].wants_write == wanted) return;
    connections[fd].wants_write = wanted;
    struct epoll_event event = {.events = EPOLLIN | (wanted ? EPOLLOUT : 0), .data.fd = fd};
    epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event);
}

static void remove_from(int *list, size_t *count, int fd) {
    size_t kept = 0;
    for (size_t i = 0; i < *count; i++)
        if (list[i] != fd) list[kept++] = list[i];
    *count = kept;
}

static int later(int one, int other) { return connections[one].due > connections[other].due; }

static void sift_down(size_t at) {
    int moved = heap[at];
    for (size_t child; (child = 2 * at + 1) < heap_count; at = child) {
        if (child + 1 < heap_count && later(heap[child], heap[child + 1])) child++;
        if (!later(moved, heap[child])) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

static void heap_add(int fd) {
    size_t at = heap_count++;
    for (size_t parent; at && later(heap[parent = (at - 1) / 2], fd); at = parent)
        heap[at] = heap[parent];
    heap[at] = fd;
}

static void heap_pop(void) {
    heap[0] = heap[--heap_count];
    if (heap_count) sift_down(0);
}

static void heap_remove(int fd) {
    remove_from(heap, &heap_count, fd);
    for (size_t at = heap_count / 2; at-- > 0;) sift_down(at);
}

static void drop(int fd) {
    Connection *connection = &connections[fd];
    if (connection->response) {
        if (connection->interval) heap_remove(fd);
        else {
            remove_from(flat, &flat_count, fd);
            remove_from(waiting, &waiting_count, fd);
        }
    }
    free(connection->input);
    *connection = (Connection){0};
    close(fd);
}

enum Sent { MORE, BLOCKED, DONE, BROKEN };

// Sends the rest of the segment under way.
static enum Sent send_segment(int fd) {
    Connection *connection = &connections[fd];
    const Response *response = connection->response;
    size_t start = connection->segment ? response->ends[connection->segment - 1] : 0;
    size_t end = response->ends[connection->segment];
    const char *from = response->at;
    char copy[MAX_SEGMENT];
    if (response->kind == STAMPED && end - start < sizeof copy - STAMP_DIGITS) {
        memcpy(copy, from + start, end - start);
        char *key = memmem(copy, end - start, STAMP_KEY, sizeof STAMP_KEY - 1);
        if (key && key[sizeof STAMP_KEY - 1] == '0') {
            if (connection->sent == start) connection->stamp = now();
            char digits[STAMP_DIGITS + 1];
            snprintf(digits, sizeof digits, "%0*ld", STAMP_DIGITS, (long)connection->stamp);
            memcpy(key + sizeof STAMP_KEY - 1, digits, STAMP_DIGITS);
        }
        from = copy - start;
    }
    ssize_t sent = send(fd, from + connection->sent, end - connection->sent, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN ? BLOCKED : BROKEN;
    connection->sent += (size_t)sent;
    if (connection->sent < end) return BLOCKED;
    return ++connection->segment == response->segments ? DONE : MORE;
}

static void take_request(int fd);

static void finished(int fd) {
    connections[fd].response = NULL;
    want_write(fd, 0);
    take_request(fd);
}

static void answer(int fd, const char *json) {
    char text[1024];
    int size = snprintf(text, sizeof text,
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                        "content-length: %zu\r\n\r\n%s",
                        strlen(json), json);
    send(fd, text, (size_t)size, MSG_NOSIGNAL);
}

static uint32_t late_by(uint64_t total, double share) {
    uint64_t seen = 0;
    for (uint32_t us = 0; us < LATENESS_US; us++)
        if ((double)(seen += lateness[us]) >= share * (double)total) return us;
    return LATENESS_US;
}

static void answer_stats(int fd) {
    uint64_t total = 0;
    for (size_t us = 0; us <= LATENESS_US; us++) total += lateness[us];
    char json[256];
    snprintf(json, sizeof json, "{\"tokens\":%lu,\"late_us_p50\":%u,\"late_us_p99\":%u}",
             (unsigned long)total, late_by(total, 0.5), late_by(total, 0.99));
    memset(lateness, 0, sizeof lateness);
    answer(fd, json);
}

// Sends the first segment of a stream that goes flat out, and lets it wait at the gate.
static void start_flat(int fd) {
    if (send_segment(fd) == BROKEN) {
        drop(fd);
        return;
    }
    waiting[waiting_count++] = fd;
    if (waiting_count < (size_t)connections[fd].gate) return;
    memcpy(flat + flat_count, waiting, waiting_count * sizeof *waiting);
    flat_count += waiting_count;
    waiting_count = 0;
}

static void start(int fd, const char *path) {
    static uint64_t random = 1;
    Connection *connection = &connections[fd];
    char mode = path[1], *rest;
    long number = strtol(path + 2, &rest, 10);
    long tokens = *rest == '/' ? strtol(rest + 1, NULL, 10) : 1;
    int kind = mode == 's' ? STAMPED : strstr(path, "/completion") && !strstr(path, "/completions")
                                     ? LLAMACPP : VLLM_CHAT;
    connection->response = rendered(kind, tokens < 1 ? 1 : tokens);
    connection->segment = connection->sent = 0;
    if (mode == 't') {
        connection->interval = 0;
        connection->gate = number;
        start_flat(fd);
        return;
    }
    connection->interval = (number < 1 ? 1 : number) * 1000;
    random = random * 6364136223846793005ULL + 1442695040888963407ULL;
    int64_t phase = (int64_t)((random >> 33) % (uint64_t)connection->interval);
    connection->due = now() + (mode == 'n' ? 0 : phase);
    heap_add(fd);
}

// Answers the request that has come in whole, unless one is being answered.
static void take_request(int fd) {
    Connection *connection = &connections[fd];
    while (connection->input && !connection->response) {
        connection->input[connection->held] = 0;
        char *end = strstr(connection->input, "\r\n\r\n");
        if (!end) return;
        char *length = strcasestr(connection->input, "\r\ncontent-length:");
        size_t size = (size_t)(end + 4 - connection->input);
        if (length && length < end) size += strtoul(length + 17, NULL, 10);
        if (connection->held < size) return;
        char path[512] = "/";
        int is_post = connection->input[0] == 'P';
        sscanf(connection->input, "%*s %511s", path);
        connection->held -= size;
        memmove(connection->input, connection->input + size, connection->held);
        if (is_post) start(fd, path);
        else if (!strcmp(path, "/stats")) answer_stats(fd);
        else answer(fd, strstr(path, "/models") ? LISTING : "{}");
    }
}

static void readable(int fd) {
    Connection *connection = &connections[fd];
    size_t room = MAX_REQUEST - connection->held;
    ssize_t got = room ? recv(fd, connection->input + connection->held, room, 0) : 0;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        drop(fd);
        return;
    }
    connection->held += (size_t)got;
    take_request(fd);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= MAX_FD) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connections[fd].input = allocated(malloc(MAX_REQUEST + 1));
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
}

static void send_flat(void) {
    // A stream that ends takes the next request, which may join the list behind those sent here.
    size_t kept = 0, count = flat_count;
    static int turn[MAX_FD];
    memcpy(turn, flat, count * sizeof *flat);
    flat_count = 0;
    for (size_t i = 0; i < count; i++) {
        int fd = turn[i];
        if (!connections[fd].response || connections[fd].interval) continue;
        switch (send_segment(fd)) {
        case MORE: turn[kept++] = fd; break;
        case BLOCKED: want_write(fd, 1); break;
        case DONE: finished(fd); break;
        case BROKEN: drop(fd); break;
        }
    }
    memmove(flat + kept, flat, flat_count * sizeof *flat);
    memcpy(flat, turn, kept * sizeof *flat);
    flat_count += kept;
}

// Tokens have their times; what stands before the first goes with it, what follows the last together.
static void send_due(void) {
    int64_t time = now();
    while (heap_count && connections[heap[0]].due <= time) {
        int fd = heap[0];
        Connection *connection = &connections[fd];
        size_t at = connection->segment - connection->response->first_token; // wraps before it
        int is_token = at < (size_t)connection->response->tokens;
        int64_t late = (now() - connection->due) / 1000;
        enum Sent sent = send_segment(fd);
        if (sent == MORE && is_token) lateness[late < LATENESS_US ? late : LATENESS_US]++;
        switch (sent) {
        case MORE:
            if (is_token) connection->due += connection->interval;
            sift_down(0);
            break;
        case BLOCKED:
            heap_pop();
            want_write(fd, 1);
            break;
        case DONE:
            heap_pop();
            finished(fd);
            break;
        case BROKEN: drop(fd); break;
        }
    }
}

static void writable(int fd) {
    want_write(fd, 0);
    if (!connections[fd].response) return;
    if (connections[fd].interval) heap_add(fd);
    else flat[flat_count++] = fd;
}

static int listen_locally(void) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (void *)&address, size) || listen(listener, 4096)) die("listen");
    if (getsockname(listener, (void *)&address, &size)) die("getsockname");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "usage: server DIRECTORY\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    for (int kind = 0; kind < KINDS; kind++) {
        head[kind] = slurp(arguments[1], KIND_NAMES[kind], "head");
        body[kind] = slurp(arguments[1], KIND_NAMES[kind], "body");
        tail[kind] = slurp(arguments[1], KIND_NAMES[kind], "tail");
    }
    epoll = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_locally();
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[1024];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    event.data.fd = STDIN_FILENO;
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event)) die("standard input");
    for (unsigned turn = 0;; turn++) {
        // Flat out, looking for requests costs more than sending: every 16th turn is enough.
        if (!flat_count || turn % 16 == 0) {
            int timeout = flat_count ? 0 : heap_count ? 1 : -1;
            int ready = epoll_wait(epoll, events, 1024, timeout);
            for (int i = 0; i < ready; i++) {
                int fd = events[i].data.fd;
                if (fd == STDIN_FILENO) return 0;
                if (fd == listener) {
                    accept_all(listener);
                    continue;
                }
                if (connections[fd].input && events[i].events & ~(uint32_t)EPOLLOUT) readable(fd);
                if (connections[fd].input && events[i].events & EPOLLOUT) writable(fd);
            }
        }
        if (flat_count) send_flat();
        if (heap_count) send_due();
    }
}
