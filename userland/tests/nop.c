// Nothing: what is left of fork and exec when the program costs least.
int main(void) { return 0; }
