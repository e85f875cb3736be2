// Command dtls-front serves CoAP over DTLS (coaps://) for an LwM2M bridge on the same host.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"tinymlaas/dtls-front/internal/bridge"
	"tinymlaas/dtls-front/internal/front"
)

// A bridge beside the front is back soon after a restart: look often.
var patience = backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 2 * time.Second}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "dtls-front:", err)
		os.Exit(1)
	}
}

func run() error {
	listen := flag.String("listen", setting("LISTEN", "127.0.0.1:5684"), "host:port for CoAP over DTLS (TINYMLAAS_LISTEN)")
	coap := flag.String("coap", setting("COAP_ADDRESS", "127.0.0.1:5683"),
		"the bridge's plain CoAP socket, on loopback (TINYMLAAS_COAP_ADDRESS)")
	address := flag.String("bridge", setting("BRIDGE_ADDRESS", "127.0.0.1:7004"),
		"the bridge's gRPC address, on loopback (TINYMLAAS_BRIDGE_ADDRESS)")
	status := flag.String("status", setting("STATUS_LISTEN", ""),
		"host:port for /healthz and /metrics over HTTP; empty: none (TINYMLAAS_STATUS_LISTEN)")
	addressFile := flag.String("address-file", setting("ADDRESS_FILE", ""),
		"file that gets the bound address (TINYMLAAS_ADDRESS_FILE)")
	flag.Parse()
	token, err := secret()
	if err != nil {
		return err
	}
	target, err := loopback(*coap)
	if err != nil {
		return err
	}
	if _, err := loopback(*address); err != nil {
		return err
	}
	own, err := net.ResolveUDPAddr("udp", *listen)
	if err != nil {
		return err
	}
	files := bridge.Certificates{CA: setting("TLS_CA_FILE", ""), Certificate: setting("TLS_CERTIFICATE_FILE", ""),
		Key: setting("TLS_KEY_FILE", ""), Domain: setting("TLS_DOMAIN", "tinymlaas.internal")}
	proof, err := files.Credentials()
	if err != nil {
		return err
	}
	if files.CA != "" {
		token = "" // the certificate stands in its place
	}
	connection, err := grpc.NewClient(*address, grpc.WithTransportCredentials(proof),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: patience, MinConnectTimeout: 2 * time.Second}))
	if err != nil {
		return err
	}
	defer connection.Close()
	client := bridge.NewClient(connection, token)
	served, err := front.Listen(own, target, client, front.DefaultLimits())
	if err != nil {
		return fmt.Errorf("can't listen on %s: %w; choose another -listen", *listen, err)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	if *addressFile != "" {
		if err := write(*addressFile, served.Address().String()+"\n"); err != nil {
			return err
		}
	}
	if *status != "" {
		if err := serveStatus(*status, &served.Counters); err != nil {
			return err
		}
	}
	go client.Run(ctx)
	slog.Info("listening on", "address", served.Address().String(), "coap", *coap, "bridge", *address)
	return served.Serve(ctx)
}

func setting(name, otherwise string) string {
	if value, ok := os.LookupEnv("TINYMLAAS_" + name); ok {
		return value
	}
	return otherwise
}

// secret is the bridge's bearer token, from TINYMLAAS_TOKEN or the file that TINYMLAAS_TOKEN_FILE names.
func secret() (string, error) {
	if token := setting("TOKEN", ""); token != "" {
		return token, nil
	}
	path := setting("TOKEN_FILE", "")
	if path == "" {
		return "", nil
	}
	content, err := os.ReadFile(path)
	return strings.TrimSpace(string(content)), err
}

// loopback resolves an address that must be on this host: what goes there is neither encrypted nor authenticated.
func loopback(address string) (*net.UDPAddr, error) {
	resolved, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, err
	}
	if !resolved.IP.IsLoopback() {
		return nil, fmt.Errorf("%s is not a loopback address: run the front beside its bridge", address)
	}
	return resolved, nil
}

func write(path, text string) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// serveStatus answers probes, and Prometheus in its text format.
func serveStatus(address string, counters *front.Counters) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(answer http.ResponseWriter, _ *http.Request) { fmt.Fprintln(answer, "ok") })
	mux.HandleFunc("/metrics", func(answer http.ResponseWriter, _ *http.Request) {
		answer.Header().Set("Content-Type", "text/plain; version=0.0.4")
		fmt.Fprintf(answer, "# TYPE tinymlaas_dtls_sessions gauge\ntinymlaas_dtls_sessions %d\n", counters.Sessions.Load())
		values := reflect.ValueOf(counters).Elem()
		for index := range values.NumField() {
			counter, ok := values.Field(index).Addr().Interface().(*atomic.Uint64)
			if !ok {
				continue
			}
			name := "tinymlaas_dtls_" + snake(values.Type().Field(index).Name) + "_total"
			fmt.Fprintf(answer, "# TYPE %s counter\n%s %d\n", name, name, counter.Load())
		}
	})
	go func() {
		if err := http.Serve(listener, mux); err != nil && !errors.Is(err, net.ErrClosed) {
			slog.Error("status server ended", "error", err)
		}
	}()
	return nil
}

func snake(name string) string {
	var text strings.Builder
	for index, letter := range name {
		if letter >= 'A' && letter <= 'Z' {
			if index > 0 {
				text.WriteByte('_')
			}
			letter += 'a' - 'A'
		}
		text.WriteRune(letter)
	}
	return text.String()
}
