//go:build linux

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
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit statuses.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
	exitRuns  = 3 // of the process in the background: there is another one
)

func main() {
	os.Exit(run(os.Args[1:]))
}

// run is the whole program but for the exit.
func run(args []string) int {
	var o options
	return o.execute(newCommand(&o), args)
}

// execute runs a command line, and returns its exit status.
func (o *options) execute(cmd *cobra.Command, args []string) int {
	// A caught SIGPIPE turns into EPIPE, and does not end the process. An ignored one
	// would too, but children would inherit that (execve(2)).
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	var err error
	out := &output{file: os.Stdout}
	if c, ok := o.ipWords(args); ok {
		err = o.runWords(ctx, c, out)
	} else {
		cmd.SetArgs(doubleDashes(args))
		cmd.SetOut(out)
		err = cmd.ExecuteContext(ctx)
	}
	if err == nil {
		err = out.err
	}
	if err == nil {
		return exitOK
	}
	if status := statusError(0); errors.As(err, &status) {
		return int(status)
	}
	if errors.As(err, new(usageError)) {
		report(plainHandler{os.Stderr, underJournal()}, err, "Try 'goipip --help'.")
		return exitUsage
	}
	report(o.errorHandler(), err)
	return exitError
}

// usageError is a command line that cannot be carried out as it stands.
type usageError struct{ error }

// output is standard output, and remembers the first error: a result that nobody got is none.
type output struct {
	file *os.File
	err  error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.file.Write(p)
	if err != nil && o.err == nil {
		o.err = err
	}
	return n, err
}
