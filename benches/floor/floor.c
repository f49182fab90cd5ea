// The floor under every client: connect, send, wait, receive. Nothing is parsed.
//
//     floor PORT PATH STREAMS [seconds=S] [gather=US] [requests=N] [stagger=US] [stamped=1]
//
// Opens STREAMS connections, sends a request on each and receives until the responses end. CPU is
// counted from when every stream has begun; with seconds, for so long, and then it stops.
//   gather    sleeps so long before each wait for readiness, so that wake-ups are shared
//   requests  so many on each connection, one after the other; CPU is counted from the first
//   stagger   begins the streams so far apart, and tells the times to the first byte of the body
//   stamped   tells how long after the time in their text tokens have come (the server's mode s)
// Prints one JSON object.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_STREAMS = 20000, BUFFER = 65536, LATENESS_US = 1 << 20 };
static const char END[] = "0\r\n\r\n", STAMP_KEY[] = "\"content\":\"";

typedef struct {
    int fd, has_begun;
    long requests; // still to be sent
    int64_t sent_at;
    char last[5];
} Stream;

static Stream streams[MAX_STREAMS];
static uint32_t lateness[LATENESS_US + 1], first[LATENESS_US + 1];
static char buffer[BUFFER];

static int64_t clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void count_us(uint32_t *histogram, int64_t ns) {
    int64_t us = ns / 1000;
    histogram[us < 0 ? 0 : us < LATENESS_US ? us : LATENESS_US]++;
}

static uint32_t quantile(const uint32_t *histogram, double share) {
    uint64_t total = 0, seen = 0;
    for (size_t us = 0; us <= LATENESS_US; us++) total += histogram[us];
    for (uint32_t us = 0; us < LATENESS_US; us++)
        if ((double)(seen += histogram[us]) >= share * (double)total) return us;
    return LATENESS_US;
}

static void read_stamps(size_t size) {
    int64_t now = clock_ns(CLOCK_MONOTONIC);
    for (char *at = buffer; (at = memmem(at, (size_t)(buffer + size - at), STAMP_KEY, 11));) {
        at += 11;
        int64_t stamp = strtoll(at, NULL, 10);
        if (stamp) count_us(lateness, now - stamp);
    }
}

static int connected(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (void *)&address, sizeof address)) die("connect");
    return fd;
}

static void send_request(Stream *stream, const char *path) {
    char text[512];
    int size = snprintf(text, sizeof text,
                        "POST %s HTTP/1.1\r\nHost: bench\r\nContent-Length: 2\r\n\r\n{}", path);
    stream->requests--;
    stream->has_begun = 0;
    stream->sent_at = clock_ns(CLOCK_MONOTONIC);
    if (send(stream->fd, text, (size_t)size, MSG_NOSIGNAL) != size) die("send");
}

static int has_ended(Stream *stream, size_t got) {
    if (got >= 5) memcpy(stream->last, buffer + got - 5, 5);
    else {
        memmove(stream->last, stream->last + got, 5 - got);
        memcpy(stream->last + 5 - got, buffer, got);
    }
    return !memcmp(stream->last, END, 5);
}

int main(int count, char **arguments) {
    long port = 0, number = 0, seconds = 0, gather = 0, requests = 1, stagger = 0, stamped = 0;
    if (count < 4) return 2;
    port = atol(arguments[1]);
    const char *path = arguments[2];
    number = atol(arguments[3]);
    if (number < 1 || number > MAX_STREAMS) return 2;
    for (int i = 4; i < count; i++) {
        sscanf(arguments[i], "seconds=%ld", &seconds);
        sscanf(arguments[i], "gather=%ld", &gather);
        sscanf(arguments[i], "requests=%ld", &requests);
        sscanf(arguments[i], "stagger=%ld", &stagger);
        sscanf(arguments[i], "stamped=%ld", &stamped);
    }
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    int64_t cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID), wall = clock_ns(CLOCK_MONOTONIC), until = 0;
    long started = 0, begun = 0, left = number, bytes = 0, receives = 0;
    struct epoll_event events[1024];
    while (left) {
        int64_t now = clock_ns(CLOCK_MONOTONIC);
        // Streams begin at once, in lots that the listener's backlog holds, or one by one.
        for (int lot = 0; started < number && lot < (stagger ? 1 : 256); lot++) {
            if (stagger && now < wall + started * stagger * 1000) break;
            Stream *stream = &streams[started];
            stream->fd = connected((int)port);
            stream->requests = requests;
            struct epoll_event event = {.events = EPOLLIN, .data.ptr = stream};
            epoll_ctl(epoll, EPOLL_CTL_ADD, stream->fd, &event);
            send_request(stream, path);
            started++;
        }
        if (until && now >= until) break;
        if (gather && begun == number) usleep((useconds_t)gather);
        // One stream needs no epoll: a blocking receive is the floor.
        int ready = 1, timeout = started < number ? 1 : seconds ? 10 : -1;
        if (number == 1) events[0].data.ptr = &streams[0];
        else ready = epoll_wait(epoll, events, 1024, timeout);
        for (int i = 0; i < ready; i++) {
            Stream *stream = events[i].data.ptr;
            ssize_t got = recv(stream->fd, buffer, sizeof buffer, 0);
            if (got <= 0) die("recv");
            receives++;
            bytes += got;
            if (!stream->has_begun) {
                stream->has_begun = 1;
                if (stagger) count_us(first, clock_ns(CLOCK_MONOTONIC) - stream->sent_at);
                if (++begun == number && requests == 1) {
                    cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
                    wall = clock_ns(CLOCK_MONOTONIC);
                    if (seconds) until = wall + seconds * 1000000000;
                    bytes = receives = 0;
                    memset(lateness, 0, sizeof lateness);
                }
            }
            if (stamped) read_stamps((size_t)got);
            if (!has_ended(stream, (size_t)got)) continue;
            memset(stream->last, 0, sizeof stream->last);
            if (stream->requests) send_request(stream, path);
            else left--;
        }
    }
    cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    wall = clock_ns(CLOCK_MONOTONIC) - wall;
    printf("{\"cpu_s\":%.6f,\"wall_s\":%.6f,\"bytes\":%ld,\"receives\":%ld",
           (double)cpu / 1e9, (double)wall / 1e9, bytes, receives);
    if (stamped)
        printf(",\"late_us_p50\":%u,\"late_us_p99\":%u", quantile(lateness, 0.5),
               quantile(lateness, 0.99));
    if (stagger)
        printf(",\"first_us_p50\":%u,\"first_us_p99\":%u", quantile(first, 0.5),
               quantile(first, 0.99));
    printf("}\n");
}
