/* Shim: hands this process's request to a worker of `cnisdk serve`, and exits with the plugin's status.
 *
 * One program serves all plugins. `cnisdk install` overwrites the bytes of `payload` in it with the texts of one plugin,
 * each ended by a NUL, in the order of `enum text`. Compiled with SHIM_SOURCE: the digest of this file, in quotes.
 *
 * shim.py describes the steps, protocol.py the protocol. The request lies in a socket pair. The worker gets one end, and
 * the shim keeps it too. The side that receives the message runs the request; the other side never does.
 *
 * No function of the C library is called, so that none need be linked in where CPU and compiler allow it (SHIM_ALONE).
 * The start of the C library, before main(), takes longer than the whole shim.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_statx
#define SYS_statx (-1) /* fails: no server is started */
#endif

/* --- system calls: the result, or minus the error's number --------------------------------------------------------- */

#ifdef SHIM_ALONE
#if defined(__x86_64__)
static long call(long number, long a, long b, long c, long d, long e)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}
__asm__(".globl _start\n_start:\n    xor %ebp, %ebp\n    mov %rsp, %rdi\n    and $-16, %rsp\n    call begin\n");
#elif defined(__aarch64__)
static long call(long number, long a, long b, long c, long d, long e)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;

    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
    return x0;
}
__asm__(".globl _start\n_start:\n    mov x29, #0\n    mov x30, #0\n    mov x0, sp\n    bl begin\n");
#else
#error "no system calls for this CPU: it takes the C library"
#endif
void *memset(void *to, int byte, size_t size)
{
    volatile char *at = to;

    while (size--)
        *at++ = (char)byte;
    return to;
}
void *memcpy(void *to, const void *from, size_t size)
{
    volatile char *at = to;
    const char *of = from;

    while (size--)
        *at++ = *of++;
    return to;
}
#else
#include <unistd.h>
static long call(long number, long a, long b, long c, long d, long e)
{
    long result = syscall(number, a, b, c, d, e);

    return result < 0 ? -errno : result;
}
#endif

#define CALL5(name, a, b, c, d, e) call(SYS_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))
#define CALL4(name, a, b, c, d) CALL5(name, a, b, c, d, 0)
#define CALL3(name, a, b, c) CALL5(name, a, b, c, 0, 0)
#define CALL2(name, a, b) CALL5(name, a, b, 0, 0, 0)
#define CALL1(name, a) CALL5(name, a, 0, 0, 0, 0)

static void leave(int status) __attribute__((noreturn));
static void leave(int status)
{
    for (;;)
        CALL1(exit_group, status);
}

/* --- text ---------------------------------------------------------------------------------------------------------- */

static size_t length_of(const char *text)
{
    size_t length = 0;

    while (text[length] != '\0')
        length++;
    return length;
}

static int equal(const char *text, const char *other)
{
    while (*text == *other && *text != '\0')
        text++, other++;
    return *text == *other;
}

static int starts_with(const char *text, const char *start)
{
    while (*start != '\0')
        if (*text++ != *start++)
            return 0;
    return 1;
}

static char *append(char *at, const char *text)
{
    while (*text != '\0')
        *at++ = *text++;
    return at;
}

static char *append_number(char *at, unsigned long number, unsigned base)
{
    char digits[24];
    int count = 0;

    do
        digits[count++] = (char)('0' + number % base);
    while ((number /= base) != 0);
    while (count > 0)
        *at++ = digits[--count];
    return at;
}

static long read_number(const char *text)
{
    long number = 0;

    while (*text >= '0' && *text <= '9')
        number = 10 * number + *text++ - '0';
    return number;
}

static long print(int fd, const char *text)
{
    size_t length = length_of(text);
    long written = 0;

    while (length > 0 && (written = CALL3(write, fd, text, length)) > 0) {
        text += written;
        length -= (size_t)written;
    }
    return written < 0 ? written : 0;
}

/* --- texts of the plugin --------------------------------------------------------------------------------------------- */

#define PAYLOAD_SIZE 32768

enum text {
    TYPE,      /* type of the plugin */
    ID,        /* identity of the launcher, which the server must have loaded */
    SOCKET,    /* path of the server's socket */
    FALLBACKS, /* path of the file to which reasons for fallbacks are appended */
    TIMEOUT,   /* milliseconds to wait for a worker */
    VERSIONS,  /* the plugin's answer to VERSION, with a newline */
    DIRECTORY, /* directory of the server */
    START,     /* shell script that starts a server; empty if this shim starts none */
    RECORD,    /* how the shim was installed, for programs that read this file */
    LAUNCHER,  /* the launcher: a shell script that runs the plugin in a process of its own */
    TEXTS
};

static const char payload[PAYLOAD_SIZE] __attribute__((used, aligned(64))) = "cnisdk-shim-payload " SHIM_SOURCE;
static const char *texts[TEXTS];

static void find_texts(void)
{
    const char *at = payload;

    __asm__("" : "+r"(at)); /* the compiler knows other bytes than those that were installed */
    for (size_t index = 0; index < TEXTS; index++) {
        texts[index] = at;
        if (index < LAUNCHER)
            at += length_of(at) + 1;
    }
}

/* --- signals: read from a descriptor, passed on to the worker -------------------------------------------------------- */

struct kernel_action {
    void *handler;
    unsigned long flags;
    void *restorer;
    uint64_t mask;
};

static uint64_t mask_before;

static int catch_signals(void)
{
    static const int handled[] = {SIGTERM, SIGINT, SIGHUP};
    struct kernel_action action;
    uint64_t mask = 0;

    for (size_t index = 0; index < 3; index++)
        if (CALL4(rt_sigaction, handled[index], NULL, &action, sizeof mask) == 0 && action.handler != (void *)SIG_IGN)
            mask |= 1UL << (handled[index] - 1);
    CALL4(rt_sigprocmask, SIG_BLOCK, &mask, &mask_before, sizeof mask);
    return (int)CALL4(signalfd4, -1, &mask, sizeof mask, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* The next signal that came, or 0. */
static int read_signal(int signals)
{
    struct signalfd_siginfo info;

    return CALL3(read, signals, &info, sizeof info) == sizeof info ? (int)info.ssi_signo : 0;
}

/* --- falling back ---------------------------------------------------------------------------------------------------- */

static char **arguments, **environment;

static void note_fallback(const char *reason)
{
    char line[300], *at;
    long fd = CALL4(openat, AT_FDCWD, texts[FALLBACKS], O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC,
                    0600);

    if (fd < 0)
        return;
    at = append(append(append(append(line, texts[TYPE]), " "), reason), "\n");
    /* No server may be there to read the file: bound its size, since it lies in memory (tmpfs). */
    if (CALL3(lseek, fd, 0, SEEK_END) < 1 << 20)
        CALL3(write, fd, line, at - line);
    CALL1(close, fd);
}

/* Become the launcher. */
static void run_launcher(void) __attribute__((noreturn));
static void run_launcher(void)
{
    static char *script[64] = {"sh", "-c"};

    script[2] = (char *)texts[LAUNCHER];
    for (size_t index = 0; arguments[index] != NULL && index < 60; index++)
        script[index + 3] = arguments[index];
    CALL3(execve, "/bin/sh", script, environment);
    print(1, "{\"cniVersion\":\"1.0.0\",\"code\":999,\"msg\":\"cannot run /bin/sh\"}");
    leave(1);
}

static void fall_back(const char *reason, const char *why, const char *more) __attribute__((noreturn));
static void fall_back(const char *reason, const char *why, const char *more)
{
    char line[1024], *at = line;

    note_fallback(reason);
    at = append(append(at, "cnisdk: running the plugin in a process of its own instead: "), why);
    while (*more != '\0' && *more != '\n' && at < line + sizeof line - 2)
        *at++ = *more++;
    at = append(at, "\n");
    *at = '\0';
    print(2, line);
    CALL4(rt_sigprocmask, SIG_SETMASK, &mask_before, NULL, sizeof mask_before);
    run_launcher();
}

/* --- starting a server ----------------------------------------------------------------------------------------------- */

/* Seconds after an attempt to start a server in which there is no other. */
#define PAUSE 10
/* The lock's time may be so many seconds ahead; a later one is a mistake, such as of a clock that was put back. */
#define LONGEST_PAUSE 3600

#define ALL_CHILDREN 0x40000000 /* __WALL: those without a signal too */

/* What statx(2) writes. */
struct facts {
    uint32_t mask, block_size;
    uint64_t attributes;
    uint32_t links, user, group;
    uint16_t mode, unused;
    uint64_t inode, size, blocks, attributes_mask;
    struct {
        int64_t seconds;
        uint32_t nanoseconds, unused;
    } accessed, born, changed, modified;
    uint32_t special[2], device[2];
    uint64_t mount, more[13];
};

static const char *find_variable(const char *start)
{
    for (char **each = environment; *each != NULL; each++)
        if (starts_with(*each, start))
            return *each + length_of(start);
    return "";
}

static const char *find(const char *text, const char *wanted)
{
    while (*text != '\0' && !starts_with(text, wanted))
        text++;
    return text;
}

/* Read a small file whole; empty if that fails. */
static void read_text(const char *path, char *text, size_t size)
{
    long fd = CALL4(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    long length = fd < 0 ? fd : CALL3(read, fd, text, size - 1);

    text[length > 0 ? length : 0] = '\0';
    if (fd >= 0)
        CALL1(close, fd);
}

/* Is this process in the namespace of PID 1? Kinds that the kernel does not know make no difference. */
static int shares_namespace(const char *kind, const char *initial)
{
    char path[64], ours[64], theirs[64];
    long length, other;

    *append(append(path, "/proc/self/ns/"), kind) = '\0';
    length = CALL4(readlinkat, AT_FDCWD, path, ours, sizeof ours - 1);
    *append(append(path, "/proc/1/ns/"), kind) = '\0';
    other = CALL4(readlinkat, AT_FDCWD, path, theirs, sizeof theirs - 1);
    if (length < 0 || other < 0)
        return length == -ENOENT && other == -ENOENT;
    ours[length] = theirs[other] = '\0';
    return equal(ours, theirs) && (initial == NULL || equal(ours, initial));
}

static int shares_root(void)
{
    struct facts ours, theirs;

    return CALL5(statx, AT_FDCWD, "/", 0, 0x1100, &ours) == 0 &&
           CALL5(statx, AT_FDCWD, "/proc/1/root", 0, 0x1100, &theirs) == 0 && ours.inode == theirs.inode &&
           ours.device[0] == theirs.device[0] && ours.device[1] == theirs.device[1] && ours.mount == theirs.mount;
}

/* Has this process the user and group ids and all rights of PID 1, its seccomp mode and its AppArmor profile? */
static int has_all_rights(void)
{
    static const char *const lines[] = {"\nUid:\t", "\nGid:\t", "\nCapEff:\t", "\nNoNewPrivs:\t", "\nSeccomp:\t"};
    static char ours[8192], theirs[8192];

    read_text("/proc/self/attr/apparmor/current", ours, sizeof ours);
    read_text("/proc/1/attr/apparmor/current", theirs, sizeof theirs);
    if (!equal(ours, theirs))
        return 0;
    read_text("/proc/self/status", ours, sizeof ours);
    read_text("/proc/1/status", theirs, sizeof theirs);
    for (size_t index = 0; index < sizeof lines / sizeof *lines; index++) {
        const char *our = find(ours, lines[index]), *their = find(theirs, lines[index]);

        if (*our == '\0')
            return 0;
        do
            if (*our != *their)
                return 0;
        while (their++, *++our != '\n');
        if (*their != '\n')
            return 0;
    }
    return 1;
}

/* May this process start a server? Not in a container, nor with less than all rights; SECURITY.md says why. */
static int may_start_server(void)
{
    static const char *const kinds[] = {"mnt", "pid", "net", "uts", "ipc", "cgroup", "time"};
    const char *wish = find_variable("CNISDK_SERVER=");

    if (equal(wish, "off") || CALL1(geteuid, 0) != 0 ||
        CALL3(faccessat, AT_FDCWD, "/etc/cnisdk/no-server", 0) != -ENOENT)
        return 0;
    /* The numbers of the first namespaces are constants of the kernel. */
    if (!shares_namespace("user", "user:[4026531837]") ||
        !shares_namespace("pid", equal(wish, "on") ? NULL : "pid:[4026531836]"))
        return 0;
    for (size_t index = 0; index < sizeof kinds / sizeof *kinds; index++)
        if (!shares_namespace(kinds[index], NULL))
            return 0;
    return shares_root() && has_all_rights();
}

/* Is the file root's alone, and of that kind? */
static int is_private(long fd, unsigned kind, struct facts *found)
{
    return CALL5(statx, fd, "", 0x1000, 0x7ff, found) == 0 && found->user == 0 && (found->mode & 077) == 0 &&
           (found->mode & 0170000) == kind;
}

/* Take the right to start a server. Negative if a server runs, another process starts one, or it is too early. */
static long take_turn(void)
{
    struct facts found;
    struct timespec now, times[2] = {{0, UTIME_OMIT}, {0, 0}};
    long directory, lock = -1;

    CALL3(mkdirat, AT_FDCWD, texts[DIRECTORY], 0700);
    directory = CALL4(openat, AT_FDCWD, texts[DIRECTORY], O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
    if (directory < 0)
        return directory;
    if (is_private(directory, 0040000, &found))
        lock = CALL4(openat, directory, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
    CALL1(close, directory);
    if (lock < 0)
        return lock;
    CALL2(clock_gettime, CLOCK_REALTIME, &now);
    if (CALL2(flock, lock, LOCK_EX | LOCK_NB) == 0 && is_private(lock, 0100000, &found) &&
        (found.modified.seconds <= now.tv_sec || found.modified.seconds > now.tv_sec + LONGEST_PAUSE)) {
        times[1].tv_sec = now.tv_sec + PAUSE;
        if (CALL4(utimensat, lock, NULL, times, 0) == 0)
            return lock;
    }
    CALL1(close, lock);
    return -1;
}

/* Run the script that starts a server, in a process that has nothing of this one. */
static void run_start(void) __attribute__((noreturn));
static void run_start(void)
{
    static char self[PATH_MAX];
    static char *variables[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    char *script[] = {"sh", "-c", (char *)texts[START], self, NULL};
    struct kernel_action action = {.handler = (void *)SIG_DFL};
    uint64_t mask = 0;
    long null = CALL4(openat, AT_FDCWD, "/dev/null", O_RDWR, 0);

    if (null < 0 || CALL4(readlinkat, AT_FDCWD, "/proc/self/exe", self, sizeof self - 1) < 0)
        leave(1);
    CALL1(setsid, 0);
    for (int fd = 0; fd < 3; fd++)
        CALL3(dup3, null, fd, 0);
    if (CALL3(close_range, 3, ~0U, 0) < 0) /* before Linux 5.9 */
        for (int fd = 3; fd < 1 << 20; fd++)
            CALL1(close, fd);
    CALL1(chdir, "/");
    CALL1(umask, 022);
    CALL1(personality, 0);
    CALL2(setgroups, 0, NULL);
    CALL3(ioprio_set, 1, 0, 0);
    CALL2(prctl, PR_SET_TIMERSLACK, 0);
    for (int number = 1; number <= 64; number++)
        CALL4(rt_sigaction, number, &action, NULL, sizeof mask);
    CALL4(rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof mask);
    /* The second fork: this process's end, for which the shim waits, tells that no descriptor of the caller is left. */
    if (CALL5(clone, 0, 0, 0, 0, 0) != 0)
        leave(0);
    CALL3(execve, "/bin/sh", script, variables);
    leave(1);
}

/* Start a server in the background, unless one may not, another process does, or an attempt has just been made. */
static void start_server(void)
{
    long lock, child;

    if (*texts[START] == '\0' || !may_start_server() || (lock = take_turn()) < 0)
        return;
    child = CALL5(clone, 0, 0, 0, 0, 0); /* its end sends no signal */
    if (child == 0)
        run_start();
    while (child > 0 && CALL4(wait4, child, NULL, ALL_CHILDREN, NULL) == -EINTR)
        ;
    CALL1(close, lock);
}

/* Fall back, since no worker has taken the request. A server that lives has the lock, so that this starts no other. */
static void replace_server(const char *reason, const char *why) __attribute__((noreturn));
static void replace_server(const char *reason, const char *why)
{
    start_server();
    fall_back(reason, why, "");
}

/* --- messages -------------------------------------------------------------------------------------------------------- */

/* Send a message of so many parts, with descriptors. */
static long transmit(int connection, struct iovec *parts, size_t count, const int *files, size_t number)
{
    union {
        char data[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = count, .msg_control = control.data};
    struct cmsghdr *header = &control.align;

    message.msg_controllen = CMSG_SPACE(number * sizeof(int));
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(number * sizeof(int));
    for (size_t index = 0; index < number; index++)
        ((int *)CMSG_DATA(header))[index] = files[index];
    return CALL3(sendmsg, connection, &message, MSG_NOSIGNAL);
}

/* Receive one message, and at most one descriptor. Returns its length; 0 at the end, negative for an error. */
static long receive(int connection, char *text, size_t size, int *file, int flags)
{
    union {
        char data[CMSG_SPACE(8 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {text, size - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.data};
    long length;

    message.msg_controllen = sizeof control.data;
    length = CALL3(recvmsg, connection, &message, MSG_CMSG_CLOEXEC | flags);
    text[length > 0 ? length : 0] = '\0';
    if (length > 0 && file != NULL && message.msg_controllen >= CMSG_LEN(sizeof(int)) &&
        control.align.cmsg_type == SCM_RIGHTS)
        *file = *(int *)CMSG_DATA(&control.align);
    return length;
}

/* Take the request back out of the socket pair. Returns 0 if a worker has taken it: then only wait for its end. */
static int take_back(int *end)
{
    char text[8];
    int back = *end >= 0 && receive(*end, text, sizeof text, NULL, MSG_DONTWAIT) > 0;

    if (*end >= 0)
        CALL1(close, *end);
    *end = -1;
    return back;
}

/* Wait for the end of a worker that has closed its connection, and pass signals on to it. A plugin that has become
 * another program still works for the request, and an error answered now would have the runtime delete meanwhile. */
static void wait_for_end(int worker, int signals)
{
    struct pollfd events[2] = {{worker, POLLIN, 0}, {signals, POLLIN, 0}};
    int number;

    while (events[0].revents == 0 && worker >= 0)
        if (CALL5(ppoll, events, 2, NULL, NULL, 0) > 0 && (number = read_signal(signals)) != 0)
            CALL4(pidfd_send_signal, worker, number, NULL, 0);
}

static int served(int argc)
{
    return argc == 1 && CALL2(fcntl, 0, F_GETFD) >= 0 && CALL2(fcntl, 1, F_GETFD) >= 0 && CALL2(fcntl, 2, F_GETFD) >= 0;
}

/* --- the program ----------------------------------------------------------------------------------------------------- */

#define PARTS 1024 /* IOV_MAX */

static int run(int argc)
{
    static struct iovec parts[PARTS];
    static char text[512];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred peer;
    struct timespec time;
    socklen_t size = sizeof peer;
    const char *command = "";
    int files[4] = {0, 1, 2, -1}, pair[2], signals, worker = -1;
    size_t count = 1, total;
    long connection, length, mask, milliseconds = read_number(texts[TIMEOUT]);
    char *at;

    total = length_of(arguments[0]) + 1;
    parts[0] = (struct iovec){arguments[0], total};
    for (char **each = environment; *each != NULL; each++) {
        if (starts_with(*each, "CNI_COMMAND="))
            command = *each + 12;
        if (count < PARTS) {
            parts[count] = (struct iovec){*each, length_of(*each) + 1};
            total += parts[count].iov_len;
        }
        count++;
    }
    if (equal(command, "VERSION"))
        return print(1, texts[VERSIONS]) < 0;
    if (*command == '\0' || !served(argc))
        run_launcher();

    append(address.sun_path, texts[SOCKET]); /* `cnisdk install` has seen that it fits */
    connection = CALL3(socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    length = connection < 0 ? connection : CALL3(connect, connection, &address, sizeof address);
    if (length == -EAGAIN)
        replace_server("busy", "the server has too many requests waiting");
    /* -EACCES: the directory is root's, and this is an ordinary user's request, which is no reason for a message. */
    if ((length == -ENOENT || length == -ECONNREFUSED || length == -EACCES) && *texts[START] != '\0') {
        start_server();
        note_fallback("absent");
        run_launcher();
    }
    if (length < 0)
        fall_back("absent", "no server listens at ", texts[SOCKET]);
    if (CALL5(getsockopt, connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 ||
        (long)peer.uid != CALL1(geteuid, 0))
        fall_back("stranger", "the server is another user's: ", texts[SOCKET]);

    signals = catch_signals();
    files[3] = (int)CALL4(openat, AT_FDCWD, ".", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (count > PARTS || CALL4(socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0 || signals < 0 ||
        transmit(pair[0], parts, count, files, 4) != (long)total)
        fall_back("large", "the request cannot be handed over", "");
    mask = CALL1(umask, 0);
    CALL1(umask, mask);
    at = append(append(append(append(append(text, "cnisdk4 "), texts[TYPE]), " "), texts[ID]), " ");
    at = append_number(at, (unsigned long)CALL1(personality, 0xffffffff), 16);
    *at++ = ' ';
    at = append_number(at, (unsigned long)mask, 8);
    *at++ = ' ';
    at = append_number(at, total, 10);
    *at++ = ' ';
    CALL2(clock_gettime, CLOCK_MONOTONIC, &time);
    at = append_number(at, (unsigned long)time.tv_sec * 1000000 + (unsigned long)time.tv_nsec / 1000, 10);
    length = transmit((int)connection, &(struct iovec){text, (size_t)(at - text)}, 1, &pair[1], 1);
    /* A worker that has closed the connection already may have sent a reason, which is read below. */
    if (length < 0 && length != -EPIPE && length != -ECONNRESET)
        replace_server("lost", "the server ended before it took the request");

    do {
        struct pollfd events[2] = {{(int)connection, POLLIN, 0}, {signals, POLLIN, 0}};
        struct timespec timeout = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
        long ready = CALL5(ppoll, events, 2, pair[1] < 0 ? NULL : &timeout, NULL, 0);
        int number = ready > 0 ? read_signal(signals) : 0;

        if (number != 0 || ready == 0) {
            if (take_back(&pair[1])) {
                if (number == 0)
                    replace_server("late", "the server does not answer in time");
                CALL4(rt_sigprocmask, SIG_SETMASK, &mask_before, NULL, sizeof mask_before);
                CALL2(kill, CALL1(getpid, 0), number);
            }
            if (number != 0 && (worker >= 0 || receive(pair[0], text, sizeof text, &worker, 0) > 0))
                CALL4(pidfd_send_signal, worker, number, NULL, 0);
        }
        length = receive((int)connection, text, sizeof text, NULL, MSG_DONTWAIT);
        if (length == -ECONNRESET) /* told once, if the worker did not read; its message follows */
            length = receive((int)connection, text, sizeof text, NULL, MSG_DONTWAIT);
    } while (length == -EAGAIN);
    if (length > 0 && starts_with(text, "exit "))
        return (text[5] - '0') * 100 + (text[6] - '0') * 10 + (text[7] - '0');
    if (take_back(&pair[1])) {
        if (length > 0)
            fall_back("declined", "the server declines: ", text);
        replace_server("lost", "the server ended before it took the request");
    }
    if (worker >= 0 || receive(pair[0], text, sizeof text, &worker, MSG_DONTWAIT) > 0)
        wait_for_end(worker, signals);
    if (receive(pair[0], text, sizeof text, NULL, MSG_DONTWAIT) > 0 && starts_with(text, "answering")) {
        print(2, "cnisdk: the worker died while it answered the request; it is not run again\n");
        return 1; /* a second document on standard output would spoil the first */
    }
    print(2, "cnisdk: the worker died while it ran the request; it is not run again\n");
    print(1, "{\n    \"cniVersion\": \"1.0.0\",\n    \"code\": 999,\n"
             "    \"msg\": \"the resident server's worker died while it ran this request\",\n"
             "    \"details\": \"it is not known how far it came: DEL takes back what it did\"\n}");
    return 1;
}

#ifdef SHIM_ALONE
__attribute__((noreturn, used)) void begin(long *stack)
{
    arguments = (char **)(stack + 1);
    environment = arguments + *stack + 1;
    find_texts();
    leave(*stack > 0 ? run((int)*stack) : 1);
}
#else
int main(int argc, char **argv, char **envp)
{
    arguments = argv;
    environment = envp;
    find_texts();
    return argc > 0 ? run(argc) : 1;
}
#endif
