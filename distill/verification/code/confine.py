"""Runs an untrusted program in this very process, after giving up everything that could do harm.

    python -I -S confine.py LEVEL PROGRAM SECONDS CALLER [NUMPY …]   (started by `distill.verification.code.sandbox`)

LEVEL is what confines the program, besides the limits and the list of forbidden system calls:

    namespaces    a root of its own with the system's libraries read-only, no network, no view of other processes
    landlock      the real root, in which the kernel allows reading the system's libraries and nothing else
    none          nothing, and no system call is forbidden: only the limits and an empty home

CALLER is the process that starts this one, which dies with it. NUMPY names the folders of numpy and of its libraries,
which the program may also read.

This file uses only the standard library and imports nothing once it is confined. A step that the kernel refuses ends
the process with `REFUSED` before the program runs.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import importlib.machinery
import importlib.util
import os
import platform
import resource
import select
import struct
import sys

REFUSED = 119
"""The exit code if this machine does not allow the level."""
MEMORY_BYTES = 512 << 20
FILE_BYTES = 8 << 20
OPEN_FILES = 64
NOBODY = 65534

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x04000000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET, CLONE_THREAD = 0x20000000, 0x40000000, 0x00010000
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV, MNT_DETACH = 4096, 16384, 1 << 18, 2, 4, 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, AT_RECURSIVE, AT_FDCWD = 1, 2, 4, 0x8000, -100
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
SIGKILL = 9

# numbers of the kernel's tables (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h)
NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "pivot_root": 155, "mount_setattr": 442, "capset": 126, "clone": 56, "clone3": 435,
        "socket": 41, "socketpair": 53, "io_uring_setup": 425, "ptrace": 101, "process_vm_readv": 310,
        "process_vm_writev": 311, "pidfd_open": 434, "pidfd_getfd": 438, "pidfd_send_signal": 424, "kill": 62,
        "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "execve": 59, "execveat": 322,
        "fork": 57, "vfork": 58, "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "chroot": 161,
        "move_mount": 429, "open_tree": 428, "fsopen": 430, "bpf": 321, "perf_event_open": 298, "add_key": 248,
        "request_key": 249, "keyctl": 250, "userfaultfd": 323, "setsid": 112, "setpgid": 109, "shmget": 29,
        "semget": 64, "msgget": 68, "mq_open": 240, "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452,
        "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "truncate": 76, "utime": 132, "utimes": 235,
        "futimesat": 261, "utimensat": 280, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "setxattrat": 463,
        "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "removexattrat": 466, "prlimit64": 302,
        "setpriority": 141, "ioprio_set": 251, "sched_setparam": 142, "sched_setscheduler": 144,
        "sched_setaffinity": 203, "sched_setattr": 314, "migrate_pages": 256, "move_pages": 279, "kcmp": 312,
        "open_by_handle_at": 304,
    },
    "aarch64": {
        "pivot_root": 41, "mount_setattr": 442, "capset": 91, "clone": 220, "clone3": 435,
        "socket": 198, "socketpair": 199, "io_uring_setup": 425, "ptrace": 117, "process_vm_readv": 270,
        "process_vm_writev": 271, "pidfd_open": 434, "pidfd_getfd": 438, "pidfd_send_signal": 424, "kill": 129,
        "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "execve": 221, "execveat": 281,
        "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "chroot": 51,
        "move_mount": 429, "open_tree": 428, "fsopen": 430, "bpf": 280, "perf_event_open": 241, "add_key": 217,
        "request_key": 218, "keyctl": 219, "userfaultfd": 282, "setsid": 157, "setpgid": 154, "shmget": 194,
        "semget": 190, "msgget": 186, "mq_open": 180, "fchmod": 52, "fchmodat": 53, "fchmodat2": 452,
        "fchown": 55, "fchownat": 54, "truncate": 45, "utimensat": 88, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7,
        "setxattrat": 463, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16, "removexattrat": 466,
        "prlimit64": 261, "setpriority": 140, "ioprio_set": 30, "sched_setparam": 118, "sched_setscheduler": 119,
        "sched_setaffinity": 122, "sched_setattr": 274, "migrate_pages": 238, "move_pages": 239, "kcmp": 272,
        "open_by_handle_at": 265,
    },
}  # fmt: skip
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture

ALLOW, KILL, DENY, MISSING = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
"""A seccomp filter's answers: allow, end the process, "not permitted", "no such call"."""


def main() -> None:
    level, program, seconds, caller, *packages = sys.argv[1:]
    with open(program, encoding="utf-8") as file:
        source = file.read()
    limit(level, int(seconds), int(caller))
    try:
        if level == "namespaces":
            enter_namespaces()
            move_into_own_root(packages)
            drop_capabilities()
        elif level == "landlock":
            drop_capabilities()
            restrict_files(packages)
        if level != "none":
            forbid_calls()
    except OSError as error:
        print(error, file=sys.stderr)
        os._exit(REFUSED)
    os.environ.clear()
    if packages:
        sys.meta_path.append(Numpy(packages[0]))
    if level == "none":
        os.environ["HOME"] = os.getcwd()
    sys.argv = ["program.py"]
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # usually provided by Python's `site`
    exec(compile(source, "program.py", "exec"), {"__name__": "__main__", "__builtins__": builtins})  # noqa: S102


class Numpy:
    """Finds numpy in its own folder; the folder around it may not be read."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != "numpy":
            return None
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # each thread would take memory of its own
        init = os.path.join(self._folder, "__init__.py")
        return importlib.util.spec_from_file_location(name, init, submodule_search_locations=[self._folder])


def limit(level: str, seconds: int, caller: int) -> None:
    """Limit processor time, memory and files, no core dumps; on Linux, gain no privileges and die with the caller."""
    for name, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(name, (value, value))
        except (OSError, ValueError):  # macOS refuses a memory limit, which every confining level needs
            if level != "none":
                os._exit(REFUSED)
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, SIGKILL)
        if os.getppid() != caller:  # the caller died before this process was tied to it
            os._exit(REFUSED)
        _prctl(PR_SET_NO_NEW_PRIVS, 1)
        _prctl(PR_SET_DUMPABLE, 0)


def enter_namespaces() -> None:
    """Become the first process of namespaces of our own; the outer process waits and passes the exit code on.

    When the first process of a process namespace dies, the kernel kills all others in it.
    """
    user, group = os.getuid(), os.getgid()
    _prctl(PR_SET_DUMPABLE, 1)  # else /proc/self belongs to root
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    _checked(LIBC.unshare(flags), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {user} 1"),
        ("gid_map", f"{NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    alive, lifeline = os.pipe()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
    _prctl(PR_SET_PDEATHSIG, SIGKILL)
    os.close(lifeline)
    if select.select([alive], [], [], 0)[0]:  # the outer process died before that, so the other end is closed
        os._exit(REFUSED)
    os.close(alive)
    _prctl(PR_SET_DUMPABLE, 0)


def move_into_own_root(packages: list[str]) -> None:
    """Move into a small file system in memory: the system's libraries and this Python, read-only, and an empty home."""
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    root = "/tmp"  # exists on every machine; the new root covers it only in this namespace
    outside = {path: os.path.realpath(path) for path in _readable(packages)}
    sources = {path: os.open(path, os.O_PATH) for path in outside}  # a source below /tmp is covered, too
    null = os.open("/dev/null", os.O_PATH)
    _mount("none", root, "tmpfs", MS_NOSUID | MS_NODEV, f"size={FILE_BYTES},mode=755")
    for path, descriptor in sources.items():
        if os.path.islink(path) and os.path.dirname(path) == "/":  # /lib → usr/lib
            os.symlink(os.readlink(path), root + path)
            continue
        os.makedirs(root + path, exist_ok=True)
        _mount(f"/proc/self/fd/{descriptor}", root + path, None, MS_BIND | MS_REC)
        _read_only(root + path)
    os.makedirs(root + "/dev")
    os.close(os.open(root + "/dev/null", os.O_CREAT))
    _mount(f"/proc/self/fd/{null}", root + "/dev/null", None, MS_BIND)
    os.makedirs(root + "/home")
    os.makedirs(root + "/old")
    os.chmod(root + "/home", 0o700)
    _call("pivot_root", root.encode(), (root + "/old").encode())
    os.chdir("/home")
    _checked(LIBC.umount2(b"/old", MNT_DETACH), "umount2")
    os.rmdir("/old")
    for descriptor in (*sources.values(), null):
        os.close(descriptor)


def _readable(packages: list[str]) -> list[str]:
    """Return the folders that a Python program with these packages reads."""
    candidates = ["/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/lib", "/lib64", sys.base_prefix, *packages]
    found = [path for path in candidates if os.path.isdir(path)]
    return [path for path in found if not any(path.startswith(other + "/") for other in found)]


def drop_capabilities() -> None:
    """Drop all capabilities, of root or of a user namespace, for good."""
    for capability in range(64):
        if LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)  # version 3
    _call("capset", header, none)


def restrict_files(packages: list[str]) -> None:
    """Restrict files by Landlock: only `_readable` may be read, nothing written, no TCP port used."""
    version = LIBC.syscall(LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        raise OSError(ctypes.get_errno(), "Landlock is not available")
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    read_only = 0b1100  # read a file, read a folder
    network = 0b11 if version >= 4 else 0
    ruleset_bytes = struct.pack("QQ", everything, network)[: 16 if version >= 4 else 8]
    ruleset = LIBC.syscall(LANDLOCK_CREATE, ruleset_bytes, len(ruleset_bytes), 0)
    _checked(ruleset, "landlock_create_ruleset")
    for path in _readable(packages):
        descriptor = os.open(path, os.O_PATH)
        rule = struct.pack("=Qi", read_only, descriptor)
        _checked(LIBC.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0), "landlock_add_rule")
        os.close(descriptor)
    _checked(LIBC.syscall(LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def forbid_calls() -> None:
    """Forbid system calls by seccomp: sockets, starting or touching other processes, kernel interfaces, and what
    Landlock does not cover: changing a file's owner, mode, times or attributes.

    Threads are allowed: `clone` with CLONE_THREAD. `clone3` hides its flags in memory, so libc must do without it.
    """
    machine = platform.machine()
    if machine not in NUMBERS:
        raise OSError(errno.ENOSYS, f"no list of system calls for {machine}")
    numbers = NUMBERS[machine]
    setup = ("pivot_root", "mount_setattr", "capset", "clone", "clone3")
    forbidden = sorted(number for name, number in numbers.items() if name not in setup)
    forbidden += [numbers["pivot_root"], numbers["mount_setattr"]]

    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    program = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, AUDIT_ARCH[machine]),
        (answer, 0, 0, KILL),
        (load, 0, 0, 0),  # the call's number
        (at_least, 0, 1, 0x40000000),  # x86's second table of calls
        (answer, 0, 0, KILL),
        (equal, 0, 1, numbers["clone3"]),
        (answer, 0, 0, MISSING),
        (equal, 0, 4, numbers["clone"]),
        (load, 0, 0, 16),  # the low half of its first argument
        (any_bit, 1, 0, CLONE_THREAD),
        (answer, 0, 0, DENY),
        (answer, 0, 0, ALLOW),
    ]
    for number in forbidden:
        program += [(equal, 0, 1, number), (answer, 0, 0, DENY)]
    program.append((answer, 0, 0, ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filter = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    _checked(LIBC.prctl(PR_SET_SECCOMP, 2, filter, 0, 0), "seccomp")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    answer = LIBC.mount(source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), data.encode())
    _checked(answer, f"mount {target}")


def _read_only(path: str) -> None:
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
    _call("mount_setattr", AT_FDCWD, path.encode(), AT_RECURSIVE, attributes, len(attributes))


def _prctl(name: int, value: int) -> None:
    _checked(LIBC.prctl(name, value, 0, 0, 0), f"prctl {name}")


def _call(name: str, *arguments: int | bytes) -> None:
    number = NUMBERS.get(platform.machine(), {}).get(name)
    if number is None:
        raise OSError(errno.ENOSYS, f"{name} is not known for {platform.machine()}")
    _checked(LIBC.syscall(number, *arguments), name)


def _checked(answer: int, what: str) -> None:
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


if __name__ == "__main__":
    main()
