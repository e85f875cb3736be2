// Command dtls-peer lets a device without DTLS of its own reach a coaps:// server: it takes the device's plain CoAP datagrams
// on loopback and carries them through a DTLS session. Virtual boards and tests use it. SIGUSR1 moves the session to another
// source port, as a NAT does that has forgotten the device.
package main

import (
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"tinymlaas/dtls-front/internal/peer"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "dtls-peer:", err)
		os.Exit(1)
	}
}

func run() error {
	local := flag.String("listen", "127.0.0.1:0", "host:port for the device's plain CoAP")
	server := flag.String("server", "127.0.0.1:5684", "host:port of the coaps:// server")
	identity := flag.String("identity", "", "PSK identity")
	keyVariable := flag.String("key-variable", "TINYMLAAS_PSK", "environment variable with the key in hexadecimal digits")
	flag.Parse()
	secret, err := hex.DecodeString(os.Getenv(*keyVariable))
	if err != nil || len(secret) == 0 || *identity == "" {
		return fmt.Errorf("-identity, and the key in hexadecimal digits in %s, are needed", *keyVariable)
	}
	here, err := net.ResolveUDPAddr("udp", *local)
	if err != nil {
		return err
	}
	there, err := net.ResolveUDPAddr("udp", *server)
	if err != nil {
		return err
	}
	relay, err := peer.New(here, there, []byte(*identity), secret)
	if err != nil {
		return err
	}
	fmt.Println(relay.Address())
	rebind := make(chan os.Signal, 1)
	signal.Notify(rebind, syscall.SIGUSR1)
	go func() {
		for range rebind {
			if err := relay.Rebind(); err != nil {
				fmt.Fprintln(os.Stderr, "dtls-peer:", err)
			}
		}
	}()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	return relay.Serve(ctx)
}
