//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"

	"goipip/internal/daemon"
	"goipip/internal/daemon/config"
	"goipip/internal/daemon/control"
	"goipip/internal/logqueue"

	"github.com/spf13/cobra"
)

// runOptions is what the flags of goipip run say.
type runOptions struct {
	config string
	strict bool
	beside bool
}

func (r *runOptions) registerConfig(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.config, "config", "", "file, or directory of files *.toml (docs/config.md)")
	_ = cmd.MarkFlagRequired("config") // which exists
	_ = cmd.MarkFlagFilename("config", "toml")
}

func newRunCommand(o *options) *cobra.Command {
	var r runOptions
	cmd := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Run all tunnels of a configuration file",
		Long: `Run the tunnels of a configuration file, or of all files *.toml of a directory,
until SIGINT or SIGTERM. An error in a file keeps all of them from starting; what
keeps one tunnel from starting does not keep the others. The end of a tunnel
(ip link delete NAME) is its own. If the last one ends by an error, goipip exits with
status 1.

SIGHUP reads the configuration again. If it has an error, nothing changes. Otherwise
tunnels that are not in it any more end, new ones and those that do not run start,
those that are different change and keep their links, and the others are not touched.
Only another name, or another number of queues, makes a link anew.
SIGUSR1 logs the counters of all tunnels.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.runDaemon(cmd.Context(), r)
		},
	}
	r.registerConfig(cmd)
	o.registerWorkers(cmd.Flags())
	o.registerMetrics(cmd.Flags())
	cmd.Flags().BoolVar(&r.strict, "strict", false, "exit if one of the tunnels does not start")
	cmd.Flags().BoolVar(&r.beside, "beside", false, "run beside other daemons of this network namespace, and leave goipip tunnel add to them")
	return cmd
}

func newCheckCommand() *cobra.Command {
	var r runOptions
	cmd := &cobra.Command{
		Use:   "check --config FILE",
		Short: "Check a configuration file",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			file, err := config.Read(r.config)
			if err != nil {
				return err
			}
			tunnels := "1 tunnel"
			if n := len(file.Tunnels); n != 1 {
				tunnels = fmt.Sprint(n, " tunnels")
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, no errors\n", r.config, tunnels)
			return nil
		},
	}
	r.registerConfig(cmd)
	return cmd
}

func (r *runOptions) role() control.Role {
	if r.beside {
		return control.RoleBeside
	}
	return control.RoleRun
}

// runDaemon runs the tunnels of a configuration.
func (o *options) runDaemon(ctx context.Context, r runOptions) error {
	file, err := config.Read(r.config)
	if err != nil {
		return err
	}
	workers := cmp.Or(o.workers, daemon.Workers(file.Tunnels))
	if err := needDaemonDescriptors(file.Tunnels, workers); err != nil {
		return err
	}
	o.logLevel, o.logFormat = cmp.Or(file.LogLevel, o.logLevel), cmp.Or(file.LogFormat, o.logFormat)
	o.metrics = cmp.Or(o.metrics, file.Metrics)
	q := logqueue.New(o.logHandler(), logSize)
	defer q.Close(flushTimeout)
	signals := notify()
	d, err := o.serve(control.Process{Role: r.role(), Config: r.config, Workers: workers}, q.Handler())
	if err != nil {
		return err
	}
	m := openManager(d.log)
	defer func() {
		m.stopping()
		d.close(whyDone(ctx))
	}()
	m.tell("STATUS=starting the tunnels")
	err = d.Apply(file.Tunnels)
	d.Configured(err)
	d.started()
	switch {
	case d.Len() == 0:
		return errors.New("none of the tunnels starts: the log says why")
	case err != nil && r.strict:
		return errors.New("not all tunnels start, as --strict demands: the log says why")
	}
	m.ready(d.Daemon)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.Failed():
			return errors.New("the last tunnel has ended by an error: the log says why")
		case <-m.beats:
		case sig := <-signals:
			if sig == syscall.SIGUSR1 {
				d.logCounters()
			} else {
				m.reloading()
				reload(d.Daemon, r.config, d.log)
				m.reloaded(d.Daemon)
			}
		}
	}
}

// reload reads the configuration again.
func reload(d *daemon.Daemon, path string, log *slog.Logger) {
	file, err := config.Read(path)
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			log.Error("the configuration has an error", "at", strings.TrimSpace(line))
		}
		log.Error("nothing has changed: mend the configuration, and send SIGHUP again")
		d.Configured(err)
		return
	}
	err = d.Apply(file.Tunnels)
	d.Configured(err)
	if err == nil {
		log.Info("the configuration was read again", "tunnels", d.Len())
	}
}
