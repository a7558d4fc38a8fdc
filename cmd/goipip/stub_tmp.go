package main

import "github.com/spf13/cobra"

func newTunnelCommand() *cobra.Command { return &cobra.Command{Use: "tunnel"} }
func newDemoCommand() *cobra.Command   { return &cobra.Command{Use: "demo"} }
