// Answers lines of connections, each in a goroutine, at a socket that was opened for the program.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
)

func main() {
	listener, err := net.FileListener(os.NewFile(4, "listener"))
	if err != nil {
		panic(err)
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go serve(connection)
	}
}

func serve(connection net.Conn) {
	defer connection.Close()
	for lines := bufio.NewReader(connection); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		if line == "quit\n" {
			os.Exit(0)
		}
		sum := uint32(7)
		for round := uint32(0); round < 200; round++ {
			for _, character := range []byte(line) {
				sum = sum*31 + uint32(character) + round
			}
		}
		if _, err := fmt.Fprintf(connection, "%08x\n", sum); err != nil {
			return
		}
	}
}
