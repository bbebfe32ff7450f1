/*
 * The init container's one program: put the hook into the volume that the pipeline's container will preload it from.
 *
 *   sair-install [SOURCE] DESTINATION
 *
 * SOURCE defaults to /libsair_cuda.so. The copy appears under its name in one step, readable by everyone, so that a
 * restarted init container never shows a half-written library. Exits 0, or 1 with the reason on stderr.
 *
 * Every pod pulls it, so it brings no C library: a static glibc is two hundred times its size.
 */
enum { PATH_SIZE = 4096, HERE = -100 };
/* Of Linux, the same on both architectures. */
enum { NO_ENTRY = 2, INTERRUPTED = 4, IO_ERROR = 5, NO_ACCESS = 13, IS_DIRECTORY = 21, NO_SPACE = 28, READ_ONLY = 30 };
enum { NAME_TOO_LONG = 36, LINK_LOOP = 40 };
enum { WRITE = 01, CREATE = 0100, TRUNCATE = 01000, CLOSE_ON_EXEC = 02000000 };

#if defined(__x86_64__)
enum { SYS_read = 0, SYS_write = 1, SYS_fsync = 74, SYS_fchmod = 91, SYS_exit_group = 231 };
enum { SYS_openat = 257, SYS_unlinkat = 263, SYS_renameat = 264, NO_FOLLOW = 0400000 };

__asm__(".globl _start\n_start:\n\txorl %ebp, %ebp\n\tmovq %rsp, %rdi\n\tandq $-16, %rsp\n\tcall begin\n");

static long call(long number, long a, long b, long c, long d) {
    long result;
    register long fourth __asm__("r10") = d;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
enum { SYS_read = 63, SYS_write = 64, SYS_fsync = 82, SYS_fchmod = 52, SYS_exit_group = 94 };
enum { SYS_openat = 56, SYS_unlinkat = 35, SYS_renameat = 38, NO_FOLLOW = 0100000 };

__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x30, #0\n\tmov x0, sp\n\tbl begin\n");

static long call(long number, long a, long b, long c, long d) {
    register long first __asm__("x0") = a, second __asm__("x1") = b, third __asm__("x2") = c, fourth __asm__("x3") = d;
    register long which __asm__("x8") = number;
    __asm__ volatile("svc #0" : "+r"(first) : "r"(second), "r"(third), "r"(fourth), "r"(which) : "memory");
    return first;
}
#else
#error "write _start and call() for this architecture"
#endif

__attribute__((noreturn, used)) void begin(long *stack);

static long length_of(const char *text) {
    long length = 0;
    while (text[length] != '\0') length++;
    return length;
}

static void say(const char *text) { call(SYS_write, 2, (long)text, length_of(text), 0); }

static void say_number(long number) {
    char digits[24];
    unsigned long at = sizeof digits - 1;
    digits[at] = '\0';
    do digits[--at] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    say(&digits[at]);
}

static int fail(const char *what, const char *path, long error) {
    static const struct {
        long code;
        const char *name;
    } known[] = {
        {-NO_ENTRY, "no such file or directory"}, {-NO_ACCESS, "permission denied"},
        {-READ_ONLY, "read-only file system"},    {-NO_SPACE, "no space left on device"},
        {-IS_DIRECTORY, "is a directory"},        {-LINK_LOOP, "is a symbolic link"},
        {-NAME_TOO_LONG, "name too long"},        {-IO_ERROR, "input/output error"},
    };
    say("sair-install: cannot "), say(what), say(" "), say(path), say(": ");
    for (unsigned long i = 0; i < sizeof known / sizeof known[0]; i++)
        if (known[i].code == error) {
            say(known[i].name), say("\n");
            return 1;
        }
    say("error "), say_number(-error), say("\n");
    return 1;
}

static long copy(long from, long to) {
    static char buffer[65536];
    for (;;) {
        long got = call(SYS_read, from, (long)buffer, sizeof buffer, 0);
        if (got == -INTERRUPTED) continue;
        if (got <= 0) return got;
        for (long done = 0; done < got;) {
            long put = call(SYS_write, to, (long)buffer + done, got - done, 0);
            if (put < 0 && put != -INTERRUPTED) return put;
            if (put > 0) done += put;
        }
    }
}

static int install(const char *source, const char *destination) {
    static const char suffix[] = ".new";
    char temporary[PATH_SIZE];
    long length = length_of(destination);
    if (length + (long)sizeof suffix > PATH_SIZE) return fail("write", destination, -NAME_TOO_LONG);
    for (long i = 0; i < length; i++) temporary[i] = destination[i];
    for (long i = 0; i < (long)sizeof suffix; i++) temporary[length + i] = suffix[i];

    long from = call(SYS_openat, HERE, (long)source, CLOSE_ON_EXEC, 0);
    if (from < 0) return fail("read", source, from);
    long flags = WRITE | CREATE | TRUNCATE | CLOSE_ON_EXEC | NO_FOLLOW;
    long to = call(SYS_openat, HERE, (long)temporary, flags, 0644);
    if (to < 0) return fail("write", temporary, to);
    long error = copy(from, to);
    if (error == 0) error = call(SYS_fchmod, to, 0555, 0, 0);
    if (error == 0) error = call(SYS_fsync, to, 0, 0, 0);
    if (error != 0) {
        call(SYS_unlinkat, HERE, (long)temporary, 0, 0);
        return fail("write", temporary, error);
    }
    error = call(SYS_renameat, HERE, (long)temporary, HERE, (long)destination);
    return error == 0 ? 0 : fail("rename to", destination, error);
}

void begin(long *stack) {
    long count = stack[0];
    char **arguments = (char **)(stack + 1);
    int status = 1;
    if (count == 2 || count == 3)
        status = install(count == 3 ? arguments[1] : "/libsair_cuda.so", arguments[count - 1]);
    else
        say("usage: sair-install [SOURCE] DESTINATION\n");
    for (;;) call(SYS_exit_group, status, 0, 0, 0);
}
