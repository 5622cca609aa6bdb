/*
 * The limit that the warm path is held against: the same injection in C.
 *
 *   bind_tree RECORD < STATE
 *
 * Reads the container's state to its end, as a createRuntime hook must, then makes the checks, mounts and files that
 * oci_hpc_hooks/apply/rootfs.py makes for the plan in RECORD, in the same order and with the same calls. Where C has a cheaper way to the
 * same answer, it is taken: statx(2) for a mount's ID. RECORD is the remembered plan, written by hook_start.py with one row on a line and tabs between fields.
 *
 * Written to stderr: the nanoseconds of CPU time between "state read, tree opened, mounts known" and "everything attached".
 * What only our hook does (config.json, the image store, the plan's key, undoing a failure) is left out, and so are libraries: link it statically.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef RESOLVE_IN_ROOT
#define RESOLVE_NO_MAGICLINKS 0x02
#define RESOLVE_IN_ROOT 0x10
#endif

struct how { uint64_t flags, mode, resolve; };
struct attr { uint64_t set, clear, propagation, userns; };

enum { ROWS = 4096, FIELDS = 9 };

static char *rows[ROWS][FIELDS];
static int row_count;

static void fail(const char *call, const char *what)
{
	fprintf(stderr, "bind_tree: %s %s: %s\n", call, what, strerror(errno));
	_exit(1);
}

static long must(long result, const char *call, const char *what)
{
	if (result < 0)
		fail(call, what);
	return result;
}

static void stale(const char *path)
{
	errno = ESTALE;
	fail("check", path);
}

/* Everything in a descriptor, with a NUL behind it. */
static char *slurp(int fd, size_t *length)
{
	size_t room = 1 << 16, have = 0;
	char *data = malloc(room);
	for (;;) {
		ssize_t got = must(read(fd, data + have, room - have - 1), "read", "");
		if (got == 0)
			break;
		have += got;
		if (room - have < 2)
			data = realloc(data, room *= 2);
	}
	data[have] = 0;
	if (length)
		*length = have;
	return data;
}

static void read_record(const char *path)
{
	int fd = must(open(path, O_RDONLY | O_CLOEXEC), "open", path);
	char *line = slurp(fd, NULL);
	close(fd);
	while (*line && row_count < ROWS) {
		char *end = strchr(line, '\n'), *field;
		int count = 0;
		*end = 0;
		while (count < FIELDS && (field = strsep(&line, "\t")))
			rows[row_count][count++] = field;
		row_count++;
		line = end + 1;
	}
}

static char *value(const char *key)
{
	for (int i = 0; i < row_count; i++)
		if (!strcmp(rows[i][0], key))
			return rows[i][1];
	errno = ENOENT;
	fail("record", key);
	return NULL;
}

/* id: inode, size (-1: a directory, whose size says nothing), mtime in ns */
static int same(const struct stat *now, char **id)
{
	int64_t size = atoll(id[1]);
	return now->st_ino == strtoull(id[0], NULL, 10) && (size < 0 || now->st_size == size)
		&& now->st_mtim.tv_sec * 1000000000LL + now->st_mtim.tv_nsec == atoll(id[2]);
}

static int same_kind(const struct stat *now, char **id)
{
	return same(now, id) && (atoll(id[1]) < 0 ? S_ISDIR(now->st_mode) : S_ISREG(now->st_mode));
}

static int open_in(int root, const char *path)
{
	struct how how = { O_PATH | O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
	while (*path == '/')
		path++;
	return syscall(SYS_openat2, root, *path ? path : ".", &how, sizeof how);
}

static int open_unchanged(int root, const char *path, char **id)
{
	struct stat now;
	int fd = must(open_in(root, path), "openat2", path);
	must(fstat(fd, &now), "fstat", path);
	if (!same_kind(&now, id))
		stale(path);
	return fd;
}

static char *mount_table;

/* The ID of the mount that fd lies on, refused if that mount is shared. */
static void refuse_shared(int fd, const char *path)
{
	struct statx now;
	char mark[32];
	must(statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &now), "statx", path);
	snprintf(mark, sizeof mark, "\n%llu ", (unsigned long long)now.stx_mnt_id);
	char *line = strstr(mount_table, mark);
	if (!line)
		return;
	char *end = strchr(line + 1, '\n'), *shared = strstr(line, " shared:");
	if (shared && (!end || shared < end)) {
		errno = EINVAL;
		fail("shared", path);
	}
}

static int clone_mount(int fd, const char *path)
{
	struct attr attr = { MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 1 << 18 /* MS_PRIVATE */, 0 };
	int tree = must(syscall(SYS_open_tree, fd, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE | (*path ? 0 : AT_EMPTY_PATH)),
		"open_tree", path);
	must(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr), "mount_setattr", path);
	return tree;
}

static int open_source(const char *path, char **id)
{
	struct stat now;
	struct statvfs fs;
	int fd = must(open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC), "open", path);
	must(fstat(fd, &now), "fstat", path);
	if (!same_kind(&now, id))
		stale(path);
	must(fstatvfs(fd, &fs), "fstatvfs", path);
	if (fs.f_flag & ST_NOEXEC)
		stale(path);
	int tree = clone_mount(fd, "");
	close(fd);
	return tree;
}

static void set_string(int context, const char *key, const char *text)
{
	must(syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, key, text, 0), "fsconfig", key);
}

static int new_tmpfs(const char *size)
{
	int context = must(syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC), "fsopen", "tmpfs");
	set_string(context, "source", "oci-hpc-hooks");
	set_string(context, "size", size);
	set_string(context, "mode", "0755");
	must(syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0), "fsconfig", "create");
	int mount = must(syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV), "fsmount", "");
	close(context);
	return mount;
}

static void attach(int mount, int target, const char *what)
{
	must(syscall(SYS_move_mount, mount, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH), "move_mount", what);
}

static void enter(long pid)
{
	char path[64];
	struct stat theirs, ours;
	snprintf(path, sizeof path, "/proc/%ld/ns/mnt", pid);
	int mnt = must(open(path, O_RDONLY | O_CLOEXEC), "open", path);
	snprintf(path, sizeof path, "/proc/%ld/ns/user", pid);
	must(stat(path, &theirs), "stat", path);
	must(stat("/proc/self/ns/user", &ours), "stat", "ns/user");
	if (theirs.st_ino != ours.st_ino)
		stale(path);
	must(setns(mnt, CLONE_NEWNS), "setns", "mnt");
	close(mnt);
}

static int64_t nanoseconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	must(syscall(SYS_close_range, 3, ~0U, 0), "close_range", "");
	must(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl", "");
	umask(022);
	char *state = slurp(0, NULL), path[64];
	const char *mark = strstr(state, "\"pid\":");
	if (!mark)
		stale("state");
	long pid = atol(mark + 6);
	read_record(argv[1]);

	snprintf(path, sizeof path, "/proc/%ld/root", pid);
	int base = must(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC), "open", path);
	int root = must(open_in(base, value("rootfs")), "openat2", "rootfs");
	close(base);
	snprintf(path, sizeof path, "/proc/%ld/mountinfo", pid);
	int info = must(open(path, O_RDONLY | O_CLOEXEC), "open", path);
	mount_table = slurp(info, NULL);
	close(info);

	int64_t began = nanoseconds();
	int fds[ROWS], cache_target = -1;
	for (int i = 0; i < row_count; i++) {
		char **row = rows[i];
		struct stat now;
		if (!strcmp(row[0], "host")) {
			if (stat(row[1], &now) < 0 ? strcmp(row[2], "0") : !same(&now, row + 2))
				stale(row[1]);
		} else if (!strcmp(row[0], "image")) {
			close(open_unchanged(root, row[1], row + 2));
		} else if (!strcmp(row[0], "directory")) {
			int fd = open_in(root, row[1]);
			if (fd < 0 ? strcmp(row[2], "0") : fstat(fd, &now) || !same(&now, row + 2))
				stale(row[1]);
			if (fd >= 0)
				close(fd);
		}
	}

	char *log = value("log");
	int journal = must(open(log, O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600), "open", log);
	struct stat log_status;
	must(fstat(journal, &log_status), "fstat", log);

	for (int i = 0; i < row_count; i++)
		if (!strcmp(rows[i][0], "in_place")) {
			fds[i] = open_unchanged(root, rows[i][5], rows[i] + 6);
			refuse_shared(fds[i], rows[i][5]);
		}
	for (int i = 0; i < row_count; i++)
		if (!strcmp(rows[i][0], "cover")) {
			fds[i] = open_unchanged(root, rows[i][2], rows[i] + 3);
			refuse_shared(fds[i], rows[i][2]);
		}
	int parent = must(open_in(root, value("tree_parent")), "openat2", "tree_parent");
	refuse_shared(parent, "tree_parent");
	for (int i = 0; i < row_count; i++)
		if (!strcmp(rows[i][0], "cache")) {
			cache_target = open_unchanged(root, rows[i][1], rows[i] + 2);
			refuse_shared(cache_target, rows[i][1]);
		}

	int sources[ROWS];
	for (int i = 0; i < row_count; i++)
		if (!strcmp(rows[i][0], "in_place"))
			sources[i] = open_source(rows[i][1], rows[i] + 2);
	int tree = new_tmpfs(value("tree_size"));
	for (int i = 0; i < row_count; i++)
		if (!strcmp(rows[i][0], "mkdir"))
			must(mkdirat(tree, rows[i][1], 0755), "mkdir", rows[i][1]);
	for (int i = 0; i < row_count; i++)
		if (!strcmp(rows[i][0], "tree")) {
			char *target = rows[i][5];
			sources[i] = open_source(rows[i][1], rows[i] + 2);
			close(must(openat(tree, target, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0444), "open", target));
		}
	size_t length;
	int kept = must(open(value("cache_bytes"), O_RDONLY | O_CLOEXEC), "open", "cache_bytes");
	char *cache = slurp(kept, &length);
	close(kept);
	int file = must(openat(tree, "ld.so.cache", O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0444), "open", "ld.so.cache");
	if (write(file, cache, length) != (ssize_t)length)
		fail("write", "ld.so.cache");
	close(file);

	enter(pid);

	char *name = value("tree_name");
	must(mkdirat(parent, name, 0755), "mkdir", name);
	int place = must(openat(parent, name, O_PATH | O_NOFOLLOW | O_CLOEXEC), "open", name);
	struct stat made;
	must(fstat(place, &made), "fstat", name);
	attach(tree, place, name);
	for (int i = 0; i < row_count; i++)
		if (!strcmp(rows[i][0], "tree")) {
			int at = must(openat(tree, rows[i][5], O_PATH | O_NOFOLLOW | O_CLOEXEC), "open", rows[i][5]);
			attach(sources[i], at, rows[i][5]);
			close(at);
		}
	struct attr attr = { MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 1 << 18, 0 };
	must(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &attr, sizeof attr), "mount_setattr", "tree");
	for (int i = 0; i < row_count; i++)
		if (!strcmp(rows[i][0], "in_place"))
			attach(sources[i], fds[i], rows[i][5]);
	for (int i = 0; i < row_count; i++)
		if (!strcmp(rows[i][0], "cover"))
			attach(clone_mount(tree, rows[i][1]), fds[i], rows[i][2]);
	attach(clone_mount(tree, "ld.so.cache"), cache_target, "ld.so.cache");

	fprintf(stderr, "%lld\n", (long long)(nanoseconds() - began));
	_exit(0);
}
