//go:build linux

package main

import (
	"errors"
	"fmt"

	"goipip/internal/tunnel"

	"github.com/spf13/cobra"
)

func newDoctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Check this host for missing requirements and conflicts",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := needTunnelDescriptors(tunnel.Config{Queues: 1}, 1)
			if err != nil {
				return err
			}
			for _, f := range tunnel.Examine() {
				switch {
				case f.Err == nil:
					fmt.Fprintf(cmd.OutOrStdout(), "ok       %s\n", f.Need)
				case f.Optional:
					fmt.Fprintf(cmd.OutOrStdout(), "without  %s: %v\n", f.Need, f.Err)
				default:
					fmt.Fprintf(cmd.OutOrStdout(), "not ok   %s: %v\n", f.Need, f.Err)
					err = errors.New("a tunnel would not work well here")
				}
			}
			return err
		},
	}
}
