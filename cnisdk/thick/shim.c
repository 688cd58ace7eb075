/* The resident mode's front: hands this process's request to a worker of `cnisdk serve`, and exits as the plugin did.
 *
 * Compiled by `cnisdk install --thick` together with a header that defines, as strings:
 *   SHIM_TYPE      type of the plugin
 *   SHIM_ID        what the server must be, to run the same plugin as the launcher
 *   SHIM_SOCKET    path of the server's socket
 *   SHIM_FALLBACKS path of the file that counts fallbacks
 *   SHIM_VERSIONS  the plugin's answer to VERSION
 *   SHIM_LAUNCHER  the launcher: a shell script that runs the plugin in a process of its own
 * and as an integer:
 *   SHIM_PATIENCE  milliseconds to wait for a worker
 *
 * The protocol is in protocol.py. Whatever goes wrong before the worker has started, the launcher runs the request.
 * Whatever goes wrong later is an error: nothing is run twice.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include SHIM_HEADER

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif

extern char **environ;

static volatile sig_atomic_t worker = -1; /* pidfd */
static volatile sig_atomic_t pending = 0; /* a signal that came before there was a worker */

static void note_fallback(const char *reason)
{
    struct stat status;
    int fd = open(SHIM_FALLBACKS, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);

    if (fd < 0)
        return;
    /* Nobody reads it while there is no server: it must not fill the memory. */
    if (fstat(fd, &status) == 0 && status.st_size < 1 << 20)
        dprintf(fd, "%s %s\n", SHIM_TYPE, reason);
    close(fd);
}

/* Become the launcher. */
static void run_launcher(char **argv, const char *reason, const char *why)
{
    static const int handled[] = {SIGTERM, SIGINT, SIGHUP};
    char *script[64] = {"sh", "-c", SHIM_LAUNCHER};
    size_t count = 3, index;

    for (index = 0; argv[index] != NULL && count < 63; index++)
        script[count++] = argv[index];
    if (reason != NULL) {
        note_fallback(reason);
        dprintf(2, "cnisdk: running the plugin in a process of its own instead: %s\n", why);
    }
    for (index = 0; index < 3; index++)
        if (signal(handled[index], SIG_DFL) == SIG_IGN)
            signal(handled[index], SIG_IGN);
    if (pending)
        raise(pending);
    execv("/bin/sh", script);
    dprintf(1, "{\"cniVersion\":\"1.0.0\",\"code\":999,\"msg\":\"cannot run /bin/sh: %s\"}", strerror(errno));
    _exit(1);
}

static void handle_signal(int number)
{
    if (worker >= 0)
        syscall(SYS_pidfd_send_signal, (int)worker, number, NULL, 0);
    else
        pending = number;
}

static void catch_signals(void)
{
    static const int handled[] = {SIGTERM, SIGINT, SIGHUP};
    struct sigaction action, before;
    size_t index;

    memset(&action, 0, sizeof action);
    action.sa_handler = handle_signal;
    for (index = 0; index < 3; index++)
        if (sigaction(handled[index], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            sigaction(handled[index], &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static long long now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000LL + time.tv_nsec / 1000000;
}

/* The environment, in a file: "argv[0]\0NAME=value\0NAME=value\0..." */
static int pack_environment(const char *name)
{
    int fd = syscall(SYS_memfd_create, "cni-environment", MFD_CLOEXEC);
    FILE *file;
    char **each;

    if (fd < 0 || (file = fdopen(dup(fd), "w")) == NULL)
        return -1;
    fwrite(name, 1, strlen(name) + 1, file);
    for (each = environ; *each != NULL; each++)
        fwrite(*each, 1, strlen(*each) + 1, file);
    return fclose(file) == 0 ? fd : -1;
}

static int send_request(int connection, const char *name)
{
    char text[256];
    union {
        char data[CMSG_SPACE(6 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {text, 0};
    struct msghdr message;
    struct cmsghdr *header;
    mode_t mask = umask(0);
    int files[6] = {0, 1, 2, -1, -1, -1};
    int sent = -1;

    umask(mask);
    files[3] = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    files[4] = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    files[5] = pack_environment(name);
    part.iov_len = snprintf(text, sizeof text, "cnisdk1 %s %s %o\n", SHIM_TYPE, SHIM_ID, (unsigned)mask);
    if (files[3] >= 0 && files[4] >= 0 && files[5] >= 0 && part.iov_len < sizeof text) {
        memset(&message, 0, sizeof message);
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control.data;
        message.msg_controllen = sizeof control.data;
        header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof files);
        memcpy(CMSG_DATA(header), files, sizeof files);
        sent = sendmsg(connection, &message, MSG_NOSIGNAL) == (ssize_t)part.iov_len ? 0 : -1;
    }
    for (int index = 3; index < 6; index++)
        if (files[index] >= 0)
            close(files[index]);
    return sent;
}

/* Receive one message, and the descriptor that comes with it. Returns its length; 0 at the end, -1 for an error. */
static ssize_t receive(int connection, char *text, size_t size, int *file)
{
    union {
        char data[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {text, size - 1};
    struct msghdr message;
    struct cmsghdr *header;
    ssize_t length;

    memset(&message, 0, sizeof message);
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data;
    message.msg_controllen = sizeof control.data;
    do
        length = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
    while (length < 0 && errno == EINTR);
    if (length >= 0)
        text[length] = '\0';
    header = length > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (file != NULL && header != NULL && header->cmsg_type == SCM_RIGHTS)
        memcpy(file, CMSG_DATA(header), sizeof *file);
    return length;
}

static int wait_for(int connection, long long deadline)
{
    struct pollfd poll_for = {connection, POLLIN, 0};
    long long left;
    int ready;

    do {
        left = deadline - now();
        if (left <= 0 || pending)
            return 0;
        ready = poll(&poll_for, 1, (int)left);
    } while (ready < 0 && errno == EINTR);
    return ready > 0;
}

static void decline(char **argv, const char *text)
{
    static char why[300];

    snprintf(why, sizeof why, "the server declines: %.*s", (int)strcspn(text, "\n"), text);
    run_launcher(argv, "declined", why);
}

int main(int argc, char **argv)
{
    const char *command = getenv("CNI_COMMAND");
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = SHIM_SOCKET};
    struct ucred peer;
    socklen_t size = sizeof peer;
    long long deadline = now() + SHIM_PATIENCE;
    char text[256];
    int connection, file = -1, status;
    ssize_t length;

    if (command != NULL && strcmp(command, "VERSION") == 0) {
        const char *rest = SHIM_VERSIONS "\n";
        while (*rest != '\0') {
            if ((length = write(1, rest, strlen(rest))) < 0)
                return 1;
            rest += length;
        }
        return 0;
    }
    if (command == NULL || *command == '\0' || argc != 1 || fcntl(0, F_GETFD) < 0 || fcntl(1, F_GETFD) < 0 ||
        fcntl(2, F_GETFD) < 0)
        run_launcher(argv, NULL, NULL);
    connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (connection < 0 || connect(connection, (struct sockaddr *)&address, sizeof address) < 0)
        run_launcher(argv, errno == EAGAIN ? "busy" : "absent", errno == EAGAIN ? "the server has too many requests waiting" : "no server listens at " SHIM_SOCKET);
    fcntl(connection, F_SETFL, 0);
    if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.uid != geteuid())
        run_launcher(argv, "stranger", "the server at " SHIM_SOCKET " is another user's");
    catch_signals();
    if (!wait_for(connection, deadline))
        run_launcher(argv, "late", "the server does not answer in time");
    length = receive(connection, text, sizeof text, &file);
    if (length <= 0)
        run_launcher(argv, "lost", "the server ended before it took the request");
    if (strcmp(text, "hello\n") != 0 || file < 0)
        decline(argv, text);
    if (pending || send_request(connection, argv[0]) < 0)
        run_launcher(argv, "lost", "the worker ended before it took the request");
    if (!wait_for(connection, deadline)) {
        struct pollfd death = {file, POLLIN, 0};

        syscall(SYS_pidfd_send_signal, file, SIGKILL, NULL, 0);
        while (poll(&death, 1, -1) < 0 && errno == EINTR)
            ;
    }
    length = receive(connection, text, sizeof text, NULL);
    if (length <= 0)
        run_launcher(argv, "lost", "the worker ended before it started, or did not start in time");
    if (strcmp(text, "started\n") != 0)
        decline(argv, text);
    worker = file;
    if (pending) /* it came before there was a worker to tell */
        handle_signal(pending);
    length = receive(connection, text, sizeof text, NULL);
    if (length > 0 && sscanf(text, "exit %d", &status) == 1)
        return status;
    dprintf(2, "cnisdk: the worker died while it ran the request; it is not run again\n");
    dprintf(1, "{\n    \"cniVersion\": \"1.0.0\",\n    \"code\": 999,\n"
               "    \"msg\": \"the resident server's worker died while it ran this request\",\n"
               "    \"details\": \"it is not known how far it came: DEL takes back what it did\"\n}");
    return 1;
}
