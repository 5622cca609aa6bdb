/*
 * Starts one program and says what it cost.
 *
 *   spawn STDIN STDERR PROGRAM [ARGUMENT...]      (the program's environment is this process's own)
 *
 * Prints: wall time in ns, user + system time in us, peak resident set in KiB, exit status. Small and in C because the kernel counts what a
 * process had resident before execve(2) as the peak of what it executes: started from Python, nothing would seem to need less than Python.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static long long nanoseconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int main(int argc, char **argv)
{
	static char state[1 << 16];
	int pipes[2], status;
	pid_t pid;
	struct rusage usage;
	posix_spawn_file_actions_t actions;

	if (argc < 4 || pipe2(pipes, O_CLOEXEC))
		return 2;
	int file = open(argv[1], O_RDONLY | O_CLOEXEC);
	ssize_t length = file < 0 ? -1 : read(file, state, sizeof state); /* a pipe holds as much: nobody has to write on */
	if (length < 0 || write(pipes[1], state, length) != length)
		return 2;
	close(pipes[1]);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, pipes[0], 0);
	posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
	posix_spawn_file_actions_addopen(&actions, 2, argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0600);
	long long began = nanoseconds();
	if (posix_spawn(&pid, argv[3], &actions, NULL, argv + 3, environ))
		return 2;
	if (wait4(pid, &status, 0, &usage) < 0)
		return 2;
	long long wall = nanoseconds() - began;
	long cpu = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000L + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
	printf("%lld %ld %ld %d\n", wall, cpu, usage.ru_maxrss, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	return 0;
}
