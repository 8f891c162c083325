package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/backup"
	"github.com/kvd-io/kvd/internal/cli"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/settings"
)

// saveStall is how long a backup may arrive without any progress. A whole one may take
// any time.
const saveStall = time.Minute

// snapshotSaveCommand saves a backup of a running cluster.
func snapshotSaveCommand(e environment) *cobra.Command {
	var files probeFiles
	var stale bool
	var endpoints []string
	var who cli.Credentials
	var output string
	cmd := &cobra.Command{
		Use:   "save [URL...] FILE",
		Short: "Save a backup of a running cluster",
		Long: `Save a backup of a running cluster to a file. Any node has all data: the URLs are client URLs,
which are tried in order. Without a URL, they are those of --endpoints or KVD_ENDPOINTS, or the node
that the environment describes (KVD_LISTEN_CLIENT, or KVD_PORT), or else the default. The file gets
its name only after it has been read back and verified. On a terminal, a bar shows the progress.
With rights enabled, it takes the capability backup.

Exits 0 on success and 1 otherwise; then an older FILE is still there.`,
		Example: `  kvd snapshot save backup.kvd
  kvd snapshot save http://10.0.0.1:12380 http://10.0.0.2:12380 backup.kvd
  kvd snapshot save --stale http://10.0.0.1:12380 backup.kvd   # without a quorum`,
		Args: func(_ *cobra.Command, args []string) error { return checkSaveArguments(args) },
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			file := args[len(args)-1]
			urls, err := saveFrom(e, cmd, args[:len(args)-1], &endpoints, &files)
			if err != nil {
				return err
			}
			if files.authorization, err = who.Header(&cli.Environment{Environ: e.environ, Stdin: e.stdin, Stderr: e.stderr}, urls); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			bar := cli.NewBar(e.stderr, -1, "saving", "bytes")
			info, size, err := saveSnapshot(ctx, &files, urls, file, stale, bar)
			bar.Done()
			if err != nil {
				return err
			}
			return printIntact(cmd.OutOrStdout(), output, file, uint64(size), &info)
		},
	}
	cmd.Flags().BoolVar(&stale, "stale", false, "save what the node itself has, which may be old; this works without a quorum")
	cmd.Flags().StringSliceVar(&endpoints, "endpoints", nil, "client `URLS` of one or more nodes, in place of URL (KVD_ENDPOINTS)")
	cmd.Flags().StringVar(&files.ca, "cacert", "", "trust the authority in this PEM `FILE` (KVD_CACERT)")
	cmd.Flags().StringVar(&files.cert, "cert", "", "present the certificate in this PEM `FILE` (KVD_CLIENT_CERT)")
	cmd.Flags().StringVar(&files.key, "key", "", "use the key in this PEM `FILE` for --cert (KVD_CLIENT_KEY)")
	who.Flags(cmd.Flags())
	outputFlag(cmd, &output)
	return cmd
}

// saveFrom returns the URLs to save from: those of the command line, else of the variables
// that all commands for users read, else the node that the environment describes.
func saveFrom(e environment, cmd *cobra.Command, urls []string, endpoints *[]string, files *probeFiles) ([]string, error) {
	if cmd.Flags().Changed("endpoints") && len(urls) > 0 {
		return nil, usageError{errors.New("--endpoints and URL arguments contradict each other; give only one of them")}
	}
	if err := cli.FromEnvironment(cmd.Flags(), e.environ); err != nil {
		return nil, usageError{err}
	}
	switch {
	case len(urls) > 0:
		return urls, nil
	case len(*endpoints) > 0:
		return *endpoints, nil
	}
	s, err := settings.ForClients(e.environ)
	if err != nil {
		return nil, usageError{err}
	}
	files.own, files.ownKey = s.TLSCertFile, s.TLSKeyFile
	return []string{reachable(s.ListenClient[0])}, nil
}

func isURL(text string) bool { return strings.Contains(text, "://") }

// checkSaveArguments tells URLs from the file: a forgotten file must not become a
// request to the last node and a file named after it.
func checkSaveArguments(args []string) error {
	if len(args) == 0 || isURL(args[len(args)-1]) {
		return usageError{errors.New("the last argument of kvd snapshot save is the file to write")}
	}
	for _, u := range args[:len(args)-1] {
		if !isURL(u) {
			return usageError{fmt.Errorf("%q is not a URL; kvd snapshot save takes URLs and one file", u)}
		}
	}
	return nil
}

// saveSnapshot asks one node after the other. The problems of those before the one
// that had an answer do not matter; if none has, all of them do.
func saveSnapshot(ctx context.Context, files *probeFiles, urls []string, file string, stale bool, bar *cli.Bar) (info kvstore.BodyInfo, size int64, err error) {
	var problems []error
	for _, u := range urls {
		client, err := files.client(u)
		if err != nil {
			return info, 0, usageError{err}
		}
		target := u
		if _, ok := settings.IsUnix(u); ok {
			target = "http://localhost" // for the header only: the client dials the socket
		}
		target = strings.TrimSuffix(target, "/") + "/v1/snapshot"
		if stale {
			target += "?consistency=stale"
		}
		if info, size, err = download(ctx, client, target, files.authorization, file, bar); err == nil {
			return info, size, nil
		}
		problems = append(problems, fmt.Errorf("save backup from %s: %w", u, err))
	}
	return info, 0, errors.Join(problems...)
}

// download saves what one node sends.
func download(ctx context.Context, client *http.Client, target, authorization, file string, bar *cli.Bar) (info kvstore.BodyInfo, size int64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(saveStall, func() { cancel(fmt.Errorf("no data for %v", saveStall)) })
	defer stall.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return info, 0, err
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := client.Do(req)
	if err != nil {
		return info, 0, errors.Join(err, context.Cause(ctx))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeBytes))
		return info, 0, errors.Join(fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(text))), err)
	}
	info, size, err = backup.Save(file, bar.Reader(stallReader{resp.Body, stall}))
	if err != nil {
		// The cause says whether a signal or a stall ended it; the error of the reading
		// only says that it was canceled.
		err = errors.Join(err, context.Cause(ctx))
	}
	return info, size, err
}

// stallReader lets the timer run while data is waited for. The time in which the file is
// written, synced, and verified does not count: it may be long, and no node is at fault.
type stallReader struct {
	r     io.Reader
	stall *time.Timer
}

func (s stallReader) Read(b []byte) (int, error) {
	s.stall.Reset(saveStall)
	defer s.stall.Stop()
	return s.r.Read(b)
}
