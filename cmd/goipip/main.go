// Command goipip is the Linux ipip tunnel (RFC 2003) in user space.
//
//	goipip -local 10.90.6.238 -remote 192.168.1.129
//
// stands for modprobe ipip and ip tunnel add, on machines where no module can be
// loaded. See goipip --help and the README.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// Exit statuses.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

func main() {
	os.Exit(run(os.Args[1:]))
}

// run is the whole program but for the exit.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	cmd := newCommand()
	cmd.SetArgs(doubleDashes(args))
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if status := statusError(0); errors.As(err, &status) {
		return int(status)
	}
	for line := range strings.Lines(err.Error()) { // there may be several errors
		fmt.Fprintln(os.Stderr, "goipip:", strings.TrimSpace(line))
	}
	if errors.As(err, new(usageError)) {
		fmt.Fprintln(os.Stderr, "Try 'goipip --help'.")
		return exitUsage
	}
	return exitError
}

// usageError is a command line that cannot be carried out as it stands.
type usageError struct{ error }
