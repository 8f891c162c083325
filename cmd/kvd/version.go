package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/api"
)

// Set by the linker for a release: -X main.version=… -X main.commit=….
var (
	version = "0.1.0-dev"
	commit  = ""
)

// buildVersion describes this binary. The commit is the one given to the linker,
// or else the one that the Go tool found in the working tree.
func buildVersion() api.Version {
	v := api.Version{Version: version, Commit: commit, GoVersion: runtime.Version(), API: []string{"v1"}}
	info, ok := debug.ReadBuildInfo()
	if !ok || v.Commit != "" {
		return v
	}
	for _, s := range info.Settings {
		switch {
		// The settings come in no promised order: the suffix may be there first.
		case s.Key == "vcs.revision":
			v.Commit = s.Value + v.Commit
		case s.Key == "vcs.modified" && s.Value == "true":
			v.Commit += "+changes"
		}
	}
	return v
}

// versionCommand prints more than --version: what a bug report needs.
func versionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version and how it was built",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := buildVersion()
			switch output {
			case "json":
				return json.NewEncoder(cmd.OutOrStdout()).Encode(v)
			case "text":
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "kvd %s\ncommit %s\n%s %s/%s\n",
					v.Version, orUnknown(v.Commit), v.GoVersion, runtime.GOOS, runtime.GOARCH)
				return err
			}
			return usageError{fmt.Errorf("--output is %q, but must be text or json", output)}
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "print as `FORMAT`: text or json")
	return cmd
}

// orUnknown fills in for a binary built outside of a working tree.
func orUnknown(text string) string {
	if text == "" {
		return "unknown"
	}
	return text
}
